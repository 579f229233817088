"""The model that the settings describe, and its batches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatjobs.errors import ConfigurationError
from domain.continuing import NEVER, Practice
from domain.settings import Settings
from domain.timings import Timings
from providers.mistral.batch import MistralBatch
from providers.mistral.chat import MistralChat
from providers.mistral.models import MistralModels


def mistral_chat(settings: Settings, practice: Practice | None, timings: Timings = Timings()) -> MistralChat:
    """``practice``: how the server continues an answer; None: not known. Raises ConfigurationError."""
    if settings.mistral_api_key is None:
        raise ConfigurationError("MISTRAL_API_KEY is not set; set it, or use `make run`, which brings a simulator")
    try:
        return MistralChat(
            api_key=settings.mistral_api_key.get_secret_value(),
            server_url=settings.mistral_server_url,
            idle_connections=settings.chatjobs_concurrency + settings.chatjobs_batch_concurrency,
            practice=practice,
            timings=timings,
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


@asynccontextmanager
async def mistral_models(settings: Settings) -> AsyncIterator[MistralModels | None]:
    """The models of the server, while the block runs; None without a key. Raises ConfigurationError."""
    if settings.mistral_api_key is None:
        yield None
        return
    try:
        models = MistralModels(settings.mistral_api_key.get_secret_value(), settings.mistral_server_url)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    try:
        yield models
    finally:
        await models.aclose()


def mistral_batch(settings: Settings, chat: MistralChat, timings: Timings = Timings()) -> MistralBatch:
    """Batch jobs of the same server and key as ``chat``, which was made from these settings."""
    key = settings.mistral_api_key
    return MistralBatch(
        None if key is None else key.get_secret_value(),
        settings.mistral_server_url,
        practice=lambda model: chat.practice(model) or NEVER,
        timings=timings,
    )
