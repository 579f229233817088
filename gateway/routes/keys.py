"""The tenant's API keys and webhook secrets, for its admins. Each is shown once, in the answer that makes it.

Every route needs the role ``admin`` (auth/roles.py) and sees the caller's tenant only. The command line
(`starter.py keys`, `secrets`) does the same for all tenants, directly in the database.
"""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator, Strict
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import Many, Timestamp, WireModel, parse
from chatjobs.contracts.base import WrittenTime
from chatjobs.errors import InvalidRequest, Problem
from domain.roles import Role
from gateway.auth.access import Identity
from gateway.problems import HttpProblem
from gateway.routes.jobs import Caller, Here, body_of, json_answer
from gateway.routes.settings import is_operator
from gateway.serving.bodies import json_body
from storage.engine.schema import now
from storage.keys import MOST_KEYS, ApiKey, KeyAdmin, KeyState, TenantSecret, key_name

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 16 * 1024
KeyRole = Annotated[Role, Strict(False)]
KeyName = Annotated[str, AfterValidator(key_name)]

router = APIRouter(prefix="/api")


class KeyRequest(WireModel):
    """A new key of the caller's tenant. ``expiresAt``: the key is valid until then; without it, until it is revoked."""

    name: KeyName = ""
    role: KeyRole = Role.WRITE
    expires_at: WrittenTime | None = None


class KeyChange(WireModel):
    """What to change of a key: what is absent stays as it is."""

    role: KeyRole | None = None
    name: KeyName | None = None


class KeyEntry(WireModel):
    """A key without the key itself. ``current``: it is the caller's own."""

    id: str
    name: str
    role: KeyRole
    state: KeyState
    created_at: Timestamp
    expires_at: Timestamp | None
    revoked_at: Timestamp | None
    current: bool


class KeyList(WireModel):
    """Keys, newest first, with those that are expired or revoked."""

    keys: Many[KeyEntry]


class NewKey(KeyEntry):
    """A key that was made just now. ``key`` is shown this once."""

    key: str


class SecretEntry(WireModel):
    """A webhook secret without the secret. ``fingerprint``: the first 12 hex digits of its SHA-256.

    ``signsUntil``: it was replaced, and signs beside the newest until then.
    """

    id: str
    fingerprint: str
    created_at: Timestamp
    signs_until: Timestamp | None


class SecretList(WireModel):
    """The secrets that sign the tenant's webhooks, newest first.

    ``inEnvironment``: how many secrets the setting WEBHOOK_SECRET has, which signs for this tenant; None for all
    tenants but the operator's own.
    """

    secrets: Many[SecretEntry]
    in_environment: int | None


class NewSecret(SecretEntry):
    """A secret that was made just now. ``secret`` is shown this once."""

    secret: str


@router.get("/keys", response_model=KeyList)
async def list_keys(
    here: Here, caller: Caller, limit: Annotated[int, Query(ge=1, le=MOST_KEYS)] = MOST_KEYS
) -> Response:
    """The tenant's keys, newest first, without the keys themselves."""
    found = await here.keys.list(caller.tenant, limit=limit)
    return json_answer(KeyList(keys=tuple(_entry(key, caller) for key in found)))


@router.post("/keys", status_code=201, response_model=NewKey, openapi_extra=body_of(KeyRequest))
async def add_key(request: Request, here: Here, caller: Caller) -> Response:
    """Make a key. It is in this answer and nowhere else: only its digest is stored.

    The first key of the service must have the role ``admin``: from then on every call needs a key.
    """
    wanted = parse(KeyRequest, await json_body(request, MOST_BODY_BYTES))
    if wanted.expires_at is not None and wanted.expires_at <= now():
        raise InvalidRequest([Problem("/expiresAt", "must be a time to come")])
    key, plain = await here.keys.add(
        tenant=caller.tenant, name=wanted.name, expires_at=wanted.expires_at, role=wanted.role, by=_admin(caller)
    )
    await here.access.reload_keys()
    log.info("key added", extra={"action": "key_added", "key_id": key.id, "role": key.role, "by": caller.key_id})
    return json_answer(NewKey(**_entry(key, caller).model_dump(by_alias=False), key=plain), 201)


@router.patch("/keys/{key_id}", response_model=KeyEntry, openapi_extra=body_of(KeyChange))
async def change_key(key_id: str, request: Request, here: Here, caller: Caller) -> Response:
    """Change a key's role or name; all gateways apply it within two seconds. The tenant's last valid key with the role
    ``admin`` keeps it."""
    wanted = parse(KeyChange, await json_body(request, MOST_BODY_BYTES))
    if wanted.role is None and wanted.name is None:
        raise InvalidRequest([Problem("", "must have a role, a name, or both")])
    key = await here.keys.change(key_id, role=wanted.role, name=wanted.name, by=_admin(caller))
    await here.access.reload_keys()
    log.info("key changed", extra={"action": "key_changed", "key_id": key.id, "role": key.role, "by": caller.key_id})
    return json_answer(_entry(key, caller))


@router.delete("/keys/{key_id}", status_code=204, response_model=None)
async def revoke_key(key_id: str, here: Here, caller: Caller) -> Response:
    """Revoke a key, for good: within two seconds it is refused, and its streams are closed. The call may be repeated.

    The tenant's last valid key with the role ``admin`` cannot be revoked here.
    """
    key = await here.keys.revoke(key_id, by=_admin(caller))
    await here.access.reload_keys()
    log.info("key revoked", extra={"action": "key_revoked", "key_id": key.id, "by": caller.key_id})
    return Response(status_code=204)


@router.get("/secrets", response_model=SecretList)
async def list_secrets(here: Here, caller: Caller) -> Response:
    """The webhook secrets of the tenant, by their fingerprints."""
    found = await here.secrets.list(caller.tenant)
    listed = SecretList(
        secrets=tuple(map(_secret, found)),
        in_environment=len(here.settings.webhook_secret) if is_operator(here, caller) else None,
    )
    return json_answer(listed)


@router.post(
    "/secrets", status_code=201, response_model=NewSecret, responses={409: {"description": "WEBHOOK_SECRET has them"}}
)
async def rotate_secret(here: Here, caller: Caller) -> Response:
    """Make a new webhook secret. It is in this answer and nowhere else; the one that it replaces signs beside it for 24
    hours, so that receivers can follow."""
    if is_operator(here, caller):
        detail = (
            "This tenant signs with the setting WEBHOOK_SECRET: put the new secret in front of the old one there, "
            "separated by a comma, restart workers and gateways, and take the old one out a day later"
        )
        raise HttpProblem(409, "secret_in_environment", detail)
    secret, plain = await here.secrets.rotate(caller.tenant)
    log.info("secret rotated", extra={"action": "secret_rotated", "secret_id": secret.id, "by": caller.key_id})
    return json_answer(NewSecret(**_secret(secret).model_dump(by_alias=False), secret=plain), 201)


def _admin(caller: Identity) -> KeyAdmin:
    return KeyAdmin(caller.tenant, caller.key_id)


def _entry(key: ApiKey, caller: Identity) -> KeyEntry:
    return KeyEntry(
        id=key.id,
        name=key.name,
        role=key.role,
        state=key.state(now()),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        current=key.id == caller.key_id,
    )


def _secret(secret: TenantSecret) -> SecretEntry:
    return SecretEntry(
        id=secret.id,
        fingerprint=secret.fingerprint,
        created_at=secret.created_at,
        signs_until=secret.signs_until,
    )
