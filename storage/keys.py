"""Keys of callers, webhook secrets of tenants, and the secrets that all gateways share.

A key is kept as its digest only: it has 256 random bits, so a plain SHA-256 tells nobody anything. Webhook secrets are
kept as they are, since every delivery is signed with them; nothing here shows one a second time.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, func, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.webhooks import SECRET_PREFIX
from domain.errors import KeyNotFound
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import api_keys, micros, moment, now, service_secrets, webhook_secrets

KEY_PREFIX = "cj_"
SECRET_BYTES = 32
OLD_SECRET_SIGNS = timedelta(hours=24)
"""How long receivers have to take the new secret over."""
ONE_ROTATION = text("SELECT pg_advisory_xact_lock(7234)")
FINGERPRINT_CHARACTERS = 12

Mark = tuple[int, int, int | None]
"""What changes whenever a key is added or revoked: how many there are, how many are revoked, when the newest came."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without the key itself. ``digest`` is its SHA-256 in hex; times are aware."""

    id: str
    tenant: str
    name: str
    digest: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def valid(self, at: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True)
class TenantSecret:
    """A webhook secret without the secret. ``signs_until`` is None for the newest, which signs until it is replaced."""

    id: str
    tenant: str
    fingerprint: str
    created_at: datetime
    signs_until: datetime | None


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def fingerprint_of(secret: str) -> str:
    """Enough to tell two secrets apart, and no help in guessing one."""
    return hashlib.sha256(secret.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


class KeyStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def add(self, *, tenant: str, name: str = "", expires_at: datetime | None = None) -> tuple[ApiKey, str]:
        """A new key and what its owner has to send: this is the only time that anybody sees it."""
        plain = KEY_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        values = {
            "id": f"key_{secrets.token_hex(8)}",
            "tenant": tenant,
            "name": clean(name),
            "digest": digest_of(plain),
            "created_at": micros(now()),
            "expires_at": micros(expires_at) if expires_at else None,
            "revoked_at": None,
        }
        async with self._database.write() as connection:
            await connection.execute(insert(api_keys), values)
            row = (await connection.execute(select(api_keys).where(api_keys.c.id == values["id"]))).one()
        return _key(row), plain

    async def list(self, tenant: str | None = None) -> Sequence[ApiKey]:
        """All keys, also those that are no longer valid, newest first."""
        query = select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id)
        async with self._database.read() as connection:
            rows = (await connection.execute(query if tenant is None else query.where(_of(tenant)))).all()
        return [_key(row) for row in rows]

    @retried
    async def revoke(self, key_id: str) -> ApiKey:
        """End a key, for good; again is the same. Raises KeyNotFound."""
        mine = api_keys.c.id == clean(key_id)
        async with self._database.write() as connection:
            await connection.execute(
                update(api_keys).where(mine, api_keys.c.revoked_at.is_(None)).values(revoked_at=micros(now()))
            )
            row = (await connection.execute(select(api_keys).where(mine))).first()
        if row is None:
            raise KeyNotFound
        return _key(row)

    async def find(self, digest: str) -> ApiKey | None:
        """The key with this digest, whether it is still valid or not."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(api_keys).where(api_keys.c.digest == digest))).first()
        return _key(row) if row else None

    async def configured(self) -> bool:
        """A key was added once. One that was revoked counts: to lose the last key must not open the door."""
        async with self._database.read() as connection:
            return (await connection.execute(select(api_keys.c.id).limit(1))).first() is not None

    async def changed(self, since: Mark | None) -> tuple[Mark, Sequence[ApiKey]] | None:
        """The keys that are not revoked, if anything has changed since a mark; expired ones are among them."""
        marks = select(func.count(), func.count(api_keys.c.revoked_at), func.max(api_keys.c.created_at))
        async with self._database.read() as connection:
            mark: Mark = tuple((await connection.execute(marks.select_from(api_keys))).one())
            if mark == since:
                return None
            rows = (await connection.execute(select(api_keys).where(api_keys.c.revoked_at.is_(None)))).all()
        return mark, [_key(row) for row in rows]


class SecretStore:
    """Webhook secrets of tenants, made here. (The default tenant's come from the settings.)"""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def rotate(self, tenant: str) -> tuple[TenantSecret, str]:
        """A new secret and its text, shown this once; the one it replaces signs for 24 hours more."""
        plain = SECRET_PREFIX + _base64(secrets.token_bytes(SECRET_BYTES))
        secret_id = f"sec_{secrets.token_hex(8)}"
        async with self._database.write() as connection:
            if not self._database.is_sqlite:  # two rotations at once would leave two that are the newest
                await connection.execute(ONE_ROTATION)
            time = now()
            await _retire(connection, tenant, time)
            values = {"id": secret_id, "tenant": tenant, "secret": plain, "created_at": micros(time)}
            await connection.execute(insert(webhook_secrets), values)
        return TenantSecret(secret_id, tenant, fingerprint_of(plain), time, None), plain

    async def list(self, tenant: str | None = None) -> Sequence[TenantSecret]:
        """Those that sign, newest first."""
        query = _signing(now())
        async with self._database.read() as connection:
            rows = (await connection.execute(query if tenant is None else query.where(_owned(tenant)))).all()
        return [
            TenantSecret(row.id, row.tenant, fingerprint_of(row.secret), moment(row.created_at), _time(row.signs_until))
            for row in rows
        ]

    async def secrets_of(self, tenant: str) -> Sequence[str]:
        """What a tenant's deliveries are signed with at this moment, newest first."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_signing(now()).where(_owned(tenant)))).all()
        return [row.secret for row in rows]


async def shared_secret(database: Database, name: str) -> bytes:
    """A random secret that all processes of this service have in common, made by the first that asks."""
    query = select(service_secrets.c.value).where(service_secrets.c.name == name)
    async with database.read() as connection:
        found = await connection.scalar(query)
    if found is None:
        dialect = sqlite if database.is_sqlite else postgresql
        made = dialect.insert(service_secrets).on_conflict_do_nothing()
        async with database.write() as connection:
            await connection.execute(made, {"name": name, "value": secrets.token_hex(SECRET_BYTES)})
            found = await connection.scalar(query)
    return bytes.fromhex(str(found))


def _of(tenant: str) -> Any:
    return api_keys.c.tenant == clean(tenant)


def _owned(tenant: str) -> Any:
    return webhook_secrets.c.tenant == clean(tenant)


def _signing(time: datetime) -> Any:
    until = webhook_secrets.c.signs_until
    query = select(webhook_secrets).where(or_(until.is_(None), until > micros(time)))
    return query.order_by(until.is_(None).desc(), until.desc(), webhook_secrets.c.created_at.desc())


async def _retire(connection: AsyncConnection, tenant: str, time: datetime) -> None:
    """Limit the secret that is replaced, and forget those that sign no more."""
    until = webhook_secrets.c.signs_until
    await connection.execute(delete(webhook_secrets).where(_owned(tenant), until <= micros(time)))
    await connection.execute(
        update(webhook_secrets)
        .where(_owned(tenant), until.is_(None))
        .values(signs_until=micros(time + OLD_SECRET_SIGNS))
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _time(value: int | None) -> datetime | None:
    return None if value is None else moment(value)


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        digest=row.digest,
        created_at=moment(row.created_at),
        expires_at=_time(row.expires_at),
        revoked_at=_time(row.revoked_at),
    )
