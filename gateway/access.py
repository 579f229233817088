"""Who is asking: keys, cookies, stream tokens; without keys, only this machine."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Identity:
    """``key_id`` is None where no keys are configured."""

    tenant: str
    key_id: str | None = None


class Access:
    def __init__(self, *, default_tenant: str) -> None:
        self._default = Identity(default_tenant)

    async def identify(self, request: Request) -> Identity:
        """Raises Unauthorized."""
        return self._default
