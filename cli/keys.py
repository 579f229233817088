"""The commands `keys` and `secrets`: API keys of the gateway, and signing secrets of tenants' webhooks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from chatjobs.contracts import rfc3339
from chatjobs.errors import ConfigurationError, InvalidRequest, Problem
from cli.output import Records, complain, console, local_time, one_line, safe, write
from cli.place import ServiceLocation
from domain.roles import Role
from storage.engine.database import Database
from storage.keys import OLD_SECRET_SIGNS, ApiKey, KeyStore, SecretStore, TenantSecret, key_name

OK = 0
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
COLOURS = {"valid": "green", "expired": "yellow", "revoked": "red"}


class KeyCommands:
    """Each command is a method that prints and returns the exit code."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._keys = KeyStore(database)
        self._secrets = SecretStore(database)
        self._default_tenant = place.settings.chatjobs_direct_tenant
        self._as_json = as_json

    # ------------------------------------------------------------------------------------------------ keys

    async def add_key(self, tenant: str | None, name: str, expires_at: datetime | None, role: Role) -> int:
        """Add a key. Standard output gets the key and nothing else, so that a script can read it."""
        first = not await self._keys.configured()
        key, plain = await self._keys.add(
            tenant=self._tenant(tenant), name=_name(name), expires_at=expires_at, role=role
        )
        if self._as_json:
            write(f"{one_line(_key_fields(key) | {'key': plain})}\n")
            return OK
        until = f" until {local_time(key.expires_at)}" if key.expires_at else ""
        complain(
            f"{key.id} of tenant {key.tenant}, role {key.role}, valid{until}. Keep the key: it is shown this once."
        )
        if first:
            complain("It is the first: from now on the gateway asks everybody for a key, on loopback, too.")
        write(f"{plain}\n")
        return OK

    async def list_keys(self, tenant: str | None) -> int:
        keys = await self._keys.list(tenant)
        if self._as_json:
            write(f"{one_line({'keys': [_key_fields(key) for key in keys]})}\n")
        elif keys:
            console().print(_key_table(keys))
        else:
            complain("there are no keys")
        return OK

    async def revoke_key(self, key_id: str) -> int:
        key = await self._keys.revoke(key_id)
        if self._as_json:
            write(f"{one_line(_key_fields(key))}\n")
            return OK
        write(f"{key.id} revoked\n")
        now = datetime.now(UTC)
        if not any(one.valid(now) for one in await self._keys.list()):
            complain("no valid key is left: nobody can call the gateway until you add one")
        return OK

    async def set_role(self, key_id: str, role: Role) -> int:
        """Raises KeyNotFound."""
        key = await self._keys.change(key_id, role=role)
        if self._as_json:
            write(f"{one_line(_key_fields(key))}\n")
        else:
            write(f"{key.id} has the role {key.role}\n")
        return OK

    # --------------------------------------------------------------------------------------------- secrets

    async def rotate_secret(self, tenant: str | None) -> int:
        owner = self._tenant(tenant)
        if owner == self._default_tenant:
            raise ConfigurationError(
                f"Tenant {owner} signs with WEBHOOK_SECRET: put the new secret in front of the old one there, "
                "separated by a comma, and restart the workers; take the old one out a day later"
            )
        secret, plain = await self._secrets.rotate(owner)
        if self._as_json:
            write(f"{one_line(_secret_fields(secret) | {'secret': plain})}\n")
            return OK
        hours = int(OLD_SECRET_SIGNS.total_seconds() // 3600)
        complain(
            f"New secret of tenant {owner}. Keep it: it is shown this once. Older ones sign for {hours} hours more."
        )
        write(f"{plain}\n")
        return OK

    async def list_secrets(self, tenant: str | None) -> int:
        found = await self._secrets.list(tenant)
        if self._as_json:
            write(f"{one_line({'secrets': [_secret_fields(secret) for secret in found]})}\n")
        elif found:
            console().print(_secret_table(found))
        else:
            complain(f"there are no secrets here; tenant {self._default_tenant} signs with WEBHOOK_SECRET")
        return OK

    def _tenant(self, given: str | None) -> str:
        """Raises InvalidRequest."""
        tenant = self._default_tenant if given is None else given
        if not TENANT.fullmatch(tenant):
            raise InvalidRequest([Problem("/tenant", "must be 1 to 128 letters, digits, dots, - or _")])
        return tenant


def _name(given: str) -> str:
    """Raises InvalidRequest."""
    try:
        return key_name(given)
    except ValueError as error:
        raise InvalidRequest([Problem("/name", str(error))]) from None


def _state(key: ApiKey) -> str:
    return key.state(datetime.now(UTC))


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "role": key.role.value,
        "state": _state(key),
        "createdAt": rfc3339(key.created_at),
        "expiresAt": rfc3339(key.expires_at) if key.expires_at else None,
        "revokedAt": rfc3339(key.revoked_at) if key.revoked_at else None,
    }


def _secret_fields(secret: TenantSecret) -> dict[str, Any]:
    return {
        "id": secret.id,
        "tenant": secret.tenant,
        "fingerprint": secret.fingerprint,
        "createdAt": rfc3339(secret.created_at),
        "signsUntil": rfc3339(secret.signs_until) if secret.signs_until else None,
    }


def _key_table(keys: Sequence[ApiKey]) -> RenderableType:
    table = Records("key", "tenant", "name", "role", "state", "created", "expires")
    for key in keys:
        state = Text(_state(key), COLOURS[_state(key)])
        times = (local_time(key.created_at), local_time(key.expires_at))
        table.add_row(key.id, safe(key.tenant), safe(key.name), key.role.value, state, *times)
    return table


def _secret_table(secrets: Sequence[TenantSecret]) -> RenderableType:
    table = Records("tenant", "fingerprint", "created", "signs until")
    for secret in secrets:
        until = local_time(secret.signs_until) or "it is replaced"
        table.add_row(safe(secret.tenant), secret.fingerprint, local_time(secret.created_at), until)
    return table
