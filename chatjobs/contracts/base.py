"""What all contracts are made of: the two base models, and the scalars that several of them have.

Frozen pydantic models with the names that stand on the wire. Our own fields are camelCase there; Mistral's
objects (messages, tools, usage, sampling parameters) keep Mistral's names. Models are strict: ``"5"`` is not
an integer, an unknown field is an error. Times are aware and serialise as RFC 3339 in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    PlainSerializer,
    Strict,
    StringConstraints,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticKnownError

MAX_METADATA = 16


class _FirstOnly(FailFast):
    """With a hash, which a member of a union needs before Python 3.14."""

    __hash__ = object.__hash__


T = TypeVar("T")
Many = Annotated[tuple[T, ...], Strict(False), _FirstOnly()]
"""A JSON array; a list given from Python is accepted and frozen into a tuple. Only its first wrong element is told: a
million wrong ones are refused as fast as one."""


def rfc3339(moment: datetime) -> str:
    """``2026-01-02T03:04:05.678901Z``: RFC 3339 in UTC, microseconds always present (so that it sorts as text)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Timestamp = Annotated[AwareDatetime, Strict(False), PlainSerializer(rfc3339, when_used="json")]
JsonObject = dict[str, JsonValue]


class StrictModel(BaseModel):
    """A value with Mistral's names."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        hide_input_in_errors=True,  # a validation error may end up in a log; it must not carry the prompt
    )


class WireModel(StrictModel):
    """A value of our own: snake_case in Python, camelCase on the wire."""

    model_config = ConfigDict(alias_generator=to_camel)


def _http_url(url: str) -> str:
    """Only the shape; whether the address may be called is decided by the sender, at connect time."""
    if not re.fullmatch(r"(?i)https?://[!-~]+", url):
        raise ValueError("must be an absolute http or https URL in ASCII, without spaces")
    return url


HttpUrl = Annotated[str, StringConstraints(max_length=2_048), AfterValidator(_http_url)]
Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]
Milliseconds = Annotated[int, Field(ge=0, le=3_600_000)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


def _few(value: Any) -> Any:
    """Refused by its length before its values are looked at, which pydantic would do first."""
    if isinstance(value, dict) and len(value) > MAX_METADATA:
        limits = {"field_type": "Dictionary", "max_length": MAX_METADATA, "actual_length": len(value)}
        raise PydanticKnownError("too_long", limits)
    return value


Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA), BeforeValidator(_few)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
RequestId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
StopSequence = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenCount = Annotated[int, Field(ge=1, lt=2**31)]
SignedInt64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
