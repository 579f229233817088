"""The model that the settings describe, and its batches."""

from __future__ import annotations

from chatjobs.errors import ConfigurationError
from domain.continuing import NEVER, Practice
from domain.settings import Settings
from domain.timings import Timings
from providers.mistral.batch import MistralBatch
from providers.mistral.chat import MistralChat


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


def mistral_batch(settings: Settings, chat: MistralChat, timings: Timings = Timings()) -> MistralBatch:
    """Batch jobs of the same server and key as ``chat``, which was made from these settings."""
    key = settings.mistral_api_key
    return MistralBatch(
        None if key is None else key.get_secret_value(),
        settings.mistral_server_url,
        practice=lambda model: chat.practice(model) or NEVER,
        timings=timings,
    )
