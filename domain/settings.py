"""The service's frozen Settings, which only entry points read from the environment."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from chatjobs.errors import ConfigurationError
from chatjobs.validation import reason
from domain.prices import Prices, parse_prices
from domain.webhook_urls import DEFAULT_PORTS, parse_allow

USUAL_BODY_BYTES = 8 * 1024 * 1024
_ORIGIN = re.compile(
    r"(?P<name>(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]))(?::(?P<port>[1-9][0-9]{0,4}))?"
)


def parse_origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them, from a comma-separated text. Raises ValueError, which says what to correct."""
    return tuple(_origin(entry.strip()) for entry in text.split(",") if entry.strip())


def _origin(entry: str) -> str:
    if entry in ("*", "null"):
        raise ValueError(f"{entry} would let any page use this service; list the origins, as in https://app.example")
    found = _ORIGIN.fullmatch(entry.lower())
    if found is None:
        raise ValueError("an origin is a scheme, a host and perhaps a port, with nothing after it: https://app.example")
    name, port = found["name"], found["port"]
    return name if port is None or int(port) == DEFAULT_PORTS.get(found["scheme"]) else f"{name}:{port}"


class Settings(BaseSettings):
    """Every setting of the service, under the name of its environment variable (upper case).

    The Temporal connection is not here: it is read by ``temporalio.envconfig`` from the same files and ``TEMPORAL_*``
    variables as the ``temporal`` command. Raises pydantic.ValidationError, which names the variable.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore", hide_input_in_errors=True)

    mistral_api_key: SecretStr | None = None
    mistral_server_url: str | None = None
    """URL of the model's server; None is Mistral's own."""
    mistral_requests_per_second: float = Field(10, gt=0, le=10_000)
    """Calls per second of one lane (a key and a family of models), over all workers; `starter.py limits` changes it."""
    chatjobs_continuation: Literal["auto", "prefix", "continue_final_message", "assistant", "none"] = "auto"
    """How the model's server continues an interrupted answer; see docs/decisions/0014-continuation.md."""
    webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Signing secrets of ``chatjobs_direct_tenant``, newest first; comma-separated."""
    chatjobs_data_dir: Path = Path(".chatjobs")
    chatjobs_database_url: str | None = None
    """``postgresql://…`` or ``sqlite:///…``; None is a SQLite file in the data directory."""
    chatjobs_concurrency: int = Field(5, ge=1, le=1_000)
    """Concurrent completions per worker process."""
    chatjobs_batch_concurrency: int = Field(20, ge=1, le=1_000)
    """Concurrent completions of batches per worker process, beside those of single jobs."""
    chatjobs_heartbeat_seconds: float = Field(10, ge=1, le=600)
    """A worker without heartbeats for so long counts as dead."""
    chatjobs_grace_seconds: float = Field(20, ge=0, le=600)
    """How long a stopping worker may take to hand its jobs over."""
    chatjobs_direct_tenant: str = "default"
    """The tenant of the command line, of HTTP without keys, and of jobs started directly in Temporal."""
    chatjobs_host: str = "127.0.0.1"
    """Address on which the gateway listens. Any but loopback needs at least one key (`starter.py keys add`)."""
    chatjobs_port: int = Field(8000, ge=0, le=65_535)
    """Port on which the gateway listens; 0 takes a free one, which is printed."""
    chatjobs_max_body_bytes: int = Field(USUAL_BODY_BYTES, ge=1_024, le=64 * 1024 * 1024)
    """The largest request body; images in messages are base64."""
    chatjobs_max_file_bytes: int = Field(512 * 1024 * 1024, ge=1_024, le=1024**4)
    """The largest file of ``POST /v1/files``; Mistral's own limit is the default."""
    chatjobs_retention_days: float = Field(30, gt=0, le=36_500)
    """How long a finished job is kept, with its text, its deliveries and its idempotency key."""
    chatjobs_public_url: str | None = None
    """The gateway's URL from outside, such as https://jobs.example; None: from the request's Host."""
    chatjobs_cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Other origins whose pages may call the API from a browser, such as https://app.example; comma-separated."""
    chatjobs_webhook_allow: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts, addresses and CIDRs of receivers that may be private, plain http and on any port; comma-separated."""
    chatjobs_webhook_deny: Annotated[tuple[str, ...], NoDecode] = ()
    """``host:port`` of servers that webhooks must not reach though their network is allowed; comma-separated."""
    chatjobs_webhook_http: bool = False
    """Whether public receivers may be plain http."""
    chatjobs_temporal_ui: str = "http://127.0.0.1:8233"
    """The Temporal UI's URL, for links to runs."""
    chatjobs_prices: Annotated[Prices | None, NoDecode] = None
    """Prices per million tokens, as ``mistral-small-latest=0.1/0.3, *=2/6; EUR``; None: no costs are shown."""

    @field_validator("chatjobs_webhook_allow", mode="before")
    @classmethod
    def _allow(cls, value: object) -> object:
        try:
            return parse_allow(value) if isinstance(value, str) else value
        except ConfigurationError as error:
            raise ValueError(error.message) from None

    @field_validator("chatjobs_cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        return parse_origins(value) if isinstance(value, str) else value

    @field_validator("chatjobs_prices", mode="before")
    @classmethod
    def _prices(cls, value: object) -> object:
        return parse_prices(value) if isinstance(value, str) else value

    @field_validator("webhook_secret", "chatjobs_webhook_deny", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @property
    def heartbeat_timeout(self) -> timedelta:
        return timedelta(seconds=self.chatjobs_heartbeat_seconds)

    @property
    def database_url(self) -> str:
        return self.chatjobs_database_url or f"sqlite:///{self.chatjobs_data_dir.absolute() / 'chatjobs.db'}"


def problems(error: ValidationError) -> str:
    """The invalid variables and the reason for each, in one sentence, without their values."""
    found = (("_".join(map(str, one["loc"][:1])).upper(), reason(one)) for one in error.errors(include_url=False))
    return "; ".join(why if why.startswith(f"{name}:") else f"{name} {why}" for name, why in found)
