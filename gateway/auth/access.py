"""Authentication of requests by key, cookie or stream token; without keys, only loopback callers."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from starlette.requests import Request

from chatjobs.errors import ConfigurationError
from domain.roles import Role
from domain.settings import Settings
from gateway.auth.key_cache import RELOAD_SECONDS, KeyCache
from gateway.auth.origins import Origins, is_loopback
from gateway.auth.signed_tokens import FILE, SECRET_NAME, SESSION, STREAM, SignedTokens
from gateway.problems import HttpProblem
from gateway.serving.open_streams import OpenStreams
from gateway.v1.errors import is_v1
from storage.engine.database import Database
from storage.engine.schema import now
from storage.keys import ApiKey, KeyStore, shared_secret

COOKIE = "chatjobs_session"
SESSION_LASTS = timedelta(days=7)
STREAM_TOKEN_LASTS = timedelta(minutes=15)
"""An EventSource reconnects with the same URL, so a token should outlive a deploy; in a proxy's log it soon expires."""
LOGIN_RETRY_SECONDS = "30"
NO_KEY = "none"
"""The key id in a ticket that was issued while no keys were configured."""
TOKEN_PATHS = {
    STREAM: re.compile(r"/api/jobs/([^/]+)/events"),
    FILE: re.compile(r"/v1/files/([^/]+)/content"),
}
"""What a token in the query opens, by its kind."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The authenticated caller; ``key_id`` is None if no keys are configured."""

    tenant: str
    role: Role
    key_id: str | None = None


def unauthorized() -> HttpProblem:
    """The error for a missing or invalid key; it does not say what is wrong with the key."""
    detail = "A valid key is needed, as in Authorization: Bearer cj_…"
    return HttpProblem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


class Access:
    """Authenticates requests, issues sessions and stream tokens; made with ``Access.open``. ``local``: on loopback."""

    def __init__(
        self,
        keys: KeyCache,
        signed_tokens: SignedTokens,
        origins: Origins,
        open_streams: OpenStreams,
        *,
        default: Identity,
        local: bool,
    ) -> None:
        self._keys = keys
        self._signed_tokens = signed_tokens
        self._origins = origins
        self._open_streams = open_streams
        self._default = default
        self._local = local

    @classmethod
    async def open(cls, settings: Settings, database: Database, open_streams: OpenStreams) -> Access:
        """Raises StorageUnavailable."""
        keys = KeyCache(KeyStore(database))
        await keys.reload()
        return cls(
            keys,
            SignedTokens(await shared_secret(database, SECRET_NAME)),
            Origins(settings.chatjobs_public_url, settings.chatjobs_cors_origins),
            open_streams,
            default=Identity(settings.chatjobs_direct_tenant, Role.ADMIN),
            local=is_loopback(settings.chatjobs_host),
        )

    def require_keys_or_loopback(self) -> None:
        """To be called before listening. Raises ConfigurationError if the service would be open to the network."""
        if self._keys.open and not self._local:
            raise ConfigurationError(
                "Without keys the gateway listens on loopback only; "
                "add a key (`starter.py keys add`), or set CHATJOBS_HOST=127.0.0.1"
            )

    async def run(self) -> None:
        """Reload the keys, and end the streams of those that are no longer valid, until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            await self.reload_keys()

    async def reload_keys(self) -> None:
        """Apply a change of the keys at once; other gateways notice it within two seconds."""
        await self._keys.refresh()
        self._end_revoked_streams()

    def _end_revoked_streams(self) -> None:
        """End the streams of all invalid keys, not only of newly revoked ones: a stream may register in between."""
        valid = {None} if self._keys.open else self._keys.valid_ids()
        for key_id in self._open_streams.key_ids() - valid:
            self._open_streams.end_for_key(key_id)

    # -------------------------------------------------------------------------------------------- requests

    @property
    def keys_required(self) -> bool:
        return not (self._keys.open and self._local)

    async def identify(self, request: Request) -> Identity:
        """The authenticated caller. Raises HttpProblem (401, 403, 421), StorageUnavailable."""
        given = request.headers.get("authorization")
        if not self.keys_required and is_v1(request.scope["path"]):
            given = None  # the official clients cannot do without a key; any will do
        if given is not None and (self.keys_required or given[:7].lower() == "bearer "):
            return _identity(await self._keys.find(_bearer(given)))
        if not self.keys_required:
            self._origins.check_host(request)
            self._origins.check_origin(request, listed=True)
            # A listed page uses the service; a key that it made would close the service to everybody else.
            return self._default if self._origins.is_own(request) else replace(self._default, role=Role.WRITE)
        for kind, path in TOKEN_PATHS.items():
            found = path.fullmatch(request.scope["path"])
            token = request.query_params.get("token") if found else None
            if found and token is not None:
                return self._by_token(kind, token, found[1])
        return self._by_cookie(request)

    async def log_in(self, key: str) -> Identity:
        """The caller with this key; for a key that was valid once, the error says whether it was revoked or expired.

        Raises HttpProblem (401, 429), StorageUnavailable.
        """
        found = await self._keys.find(key)
        if found is not None:
            return _identity(found)
        refused = await self._keys.refused(key)
        if refused == "too_many":
            detail = "Too many keys were tried that are not known here; wait before the next try"
            raise HttpProblem(429, "too_many_tries", detail, headers={"Retry-After": LOGIN_RETRY_SECONDS})
        if refused == "unknown":
            raise unauthorized()
        if refused.revoked_at is not None:
            raise HttpProblem(401, "key_revoked", f"This key was revoked on {refused.revoked_at:%Y-%m-%d}.")
        if refused.expires_at is not None and not refused.valid(now()):
            raise HttpProblem(401, "key_expired", f"This key expired on {refused.expires_at:%Y-%m-%d}.")
        return _identity(refused)  # added since ``find``

    def check_page(self, request: Request) -> None:
        """Check Host and Origin of a request that carries no credentials (CSRF). Raises HttpProblem (403, 421)."""
        if not self.keys_required:
            self._origins.check_host(request)
        self._origins.check_origin(request)

    def _by_token(self, kind: str, token: str, opened_id: str) -> Identity:
        key = self._keys.by_id(token.partition(".")[0])
        subject = _subject(key.tenant if key else "", opened_id)
        if self._signed_tokens.key_id(kind, token, now(), subject) is None:
            raise unauthorized()
        return _identity(key)

    def _by_cookie(self, request: Request) -> Identity:
        cookie = request.cookies.get(COOKIE)
        if cookie is None:
            raise unauthorized()
        self._origins.check_origin(request)
        key_id = self._signed_tokens.key_id(SESSION, cookie, now())
        return _identity(self._keys.by_id(key_id) if key_id else None)

    # -------------------------------------------------------------------------------- sessions and stream tokens

    def stream_token(self, caller: Identity, job_id: str) -> tuple[str, datetime]:
        """A token that opens the event stream of one job in place of a key, and its expiry."""
        return self._token(STREAM, caller, job_id, STREAM_TOKEN_LASTS)

    def file_token(self, caller: Identity, file_id: str, lasts: timedelta) -> str:
        """A token that opens the content of one file in place of a key, for as long, and no longer than the key."""
        return self._token(FILE, caller, file_id, lasts)[0]

    def _token(self, kind: str, caller: Identity, opened_id: str, valid_for: timedelta) -> tuple[str, datetime]:
        key = self._keys.by_id(caller.key_id) if caller.key_id else None
        lasts = now() + valid_for
        expires_at = (min(lasts, key.expires_at) if key and key.expires_at else lasts).replace(microsecond=0)
        subject = _subject(caller.tenant, opened_id)
        return self._signed_tokens.issue(kind, caller.key_id or NO_KEY, expires_at, subject), expires_at

    def session(self, caller: Identity) -> str:
        """The session cookie's value; it is valid for ``SESSION_LASTS``, and only as long as its key is."""
        return self._signed_tokens.issue(SESSION, caller.key_id or NO_KEY, now() + SESSION_LASTS)

    def secure(self, request: Request) -> bool:
        """Whether the browser uses https, to us or to a proxy in front of us."""
        return request.url.scheme == "https" or self._origins.https


def _bearer(header: str) -> str:
    """The key in ``Bearer <key>``; an empty string, which is no key, for a malformed header."""
    found = re.fullmatch(r"bearer +([!-~]+) *", header, re.IGNORECASE)
    return found[1] if found else ""


def _identity(key: ApiKey | None) -> Identity:
    if key is None:
        raise unauthorized()
    return Identity(key.tenant, key.role, key.id)


def _subject(tenant: str, opened_id: str) -> str:
    return f"{tenant}\n{opened_id}"
