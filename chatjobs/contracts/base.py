"""The base models of all contracts, and the scalars that several of them have.

Every contract is a frozen pydantic model with the field names of the wire. The service's own fields are camelCase
there; Mistral's objects (messages, tools, usage, sampling parameters) keep Mistral's names. Models are strict: ``"5"``
is not an integer, an unknown field is an error. Times are aware and serialise as RFC 3339 in UTC. Lengths of text are
in characters, which are Unicode code points.
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
"""Most keys of a job's metadata."""


class StrictModel(BaseModel):
    """A frozen value whose fields have the same names in Python and on the wire, as Mistral's objects have."""

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
    """A value of the service's own: snake_case in Python, camelCase on the wire."""

    model_config = ConfigDict(alias_generator=to_camel)


# ----------------------------------------------------------------------------------------- JSON and time


class _FirstOnly(FailFast):
    """``FailFast`` with a hash, which a member of a union needs before Python 3.14."""

    __hash__ = object.__hash__


T = TypeVar("T")
Many = Annotated[tuple[T, ...], Strict(False), _FirstOnly()]
"""A JSON array; a list given from Python is accepted and frozen into a tuple.

Only its first wrong element is reported, so that a million wrong ones are refused as fast as one."""
JsonObject = dict[str, JsonValue]
"""Any JSON object."""


def rfc3339(moment: datetime) -> str:
    """``2026-01-02T03:04:05.678901Z``: RFC 3339 in UTC, microseconds always present (so that it sorts as text)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _in_calendar(value: datetime) -> datetime:
    """The time, if it is one in UTC too: with an offset, the calendar's first and last hours may lie outside of it."""
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie between the years 1 and 9999 in UTC") from None
    return value


Timestamp = Annotated[
    AwareDatetime, Strict(False), AfterValidator(_in_calendar), PlainSerializer(rfc3339, when_used="json")
]
"""An aware time; RFC 3339 in JSON."""


def _written_time(value: Any) -> Any:
    """The value, unless it is a number: pydantic would read one as seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d", value)):
        return value
    raise ValueError("must be a time as in RFC 3339, such as 2027-01-31T12:00:00Z")


WrittenTime = Annotated[Timestamp, BeforeValidator(_written_time)]
"""An aware time of a request, as text (RFC 3339) in JSON."""
Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]
"""A length of time in seconds: more than 0, at most a week."""
Milliseconds = Annotated[int, Field(ge=0, le=3_600_000)]
"""A length of time in whole milliseconds, at most an hour."""

# ----------------------------------------------------------------------------------------- ids and names


JOB_ID = "[A-Za-z0-9_-]{1,128}"
"""The regular expression of a job id."""
JobId = Annotated[str, StringConstraints(pattern=f"^{JOB_ID}$")]
"""The id of a job, which is also the id of its Temporal workflow and a segment of its URLs."""
RequestId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
"""A caller's own id of a request: printable ASCII without spaces. It need not be unique."""
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
"""The name of a model, as Mistral lists it."""


def _http_url(url: str) -> str:
    """The URL if its shape is right. Whether its address may be called is decided by the sender, at connect time."""
    if not re.fullmatch(r"(?i)https?://[!-~]+", url):
        raise ValueError("must be an absolute http or https URL in ASCII, without spaces")
    return url


HttpUrl = Annotated[str, StringConstraints(max_length=2_048), AfterValidator(_http_url)]
"""An absolute http or https URL in ASCII."""
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
"""A key of a job's metadata."""
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
"""A value of a job's metadata."""


def _bounded_metadata(value: Any) -> Any:
    """The value, unless it is an object with too many keys: pydantic would validate each value before it counts."""
    if isinstance(value, dict) and len(value) > MAX_METADATA:
        limits = {"field_type": "Dictionary", "max_length": MAX_METADATA, "actual_length": len(value)}
        raise PydanticKnownError("too_long", limits)
    return value


Metadata = Annotated[
    dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA), BeforeValidator(_bounded_metadata)
]
"""A caller's own labels of a job: kept, searchable and sent with its webhooks, not forwarded to Mistral."""

# ----------------------------------------------------------------------------------- sampling parameters


StopSequence = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""A text at which the answer ends; its length is in characters."""
TokenCount = Annotated[int, Field(ge=1, lt=2**31)]
"""A number of tokens, at least one."""
SignedInt64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""An integer of 64 bits with a sign."""
