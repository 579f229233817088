"""Keys of callers, webhook secrets of tenants, and the secrets that all gateways share.

A key is stored as its digest only: it has 256 random bits, so a plain SHA-256 cannot be reversed. Webhook secrets are
stored as they are, since every delivery is signed with them; a secret is shown once, when it is made.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import Row, and_, delete, func, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.errors import InvalidRequest, Problem
from chatjobs.webhooks import SECRET_PREFIX
from domain.errors import KeyNotFound, LastAdminKey, NotAdmin, TooManyKeys
from domain.roles import Role
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import api_keys, micros, moment, now, service_secrets, webhook_secrets

KEY_PREFIX = "cj_"
SECRET_BYTES = 32
OLD_SECRET_SIGNS = timedelta(hours=24)
"""How long a replaced secret still signs, so that receivers can adopt the new one."""
ROTATION_LOCK = text("SELECT pg_advisory_xact_lock(7234)")
FINGERPRINT_CHARACTERS = 12

LONGEST_KEY_NAME = 128
MOST_KEYS = 1_000
"""Valid keys of a tenant that may add others over HTTP: every gateway has all keys in memory."""
KEYS_LOCK = text("SELECT pg_advisory_xact_lock(7237)")

Mark = tuple[int, int, int | None, int]
"""Changes with every key that is added, changed or revoked: the number of keys, of revoked ones, when the newest was
made, and the number of changes."""
KeyState = Literal["valid", "expired", "revoked"]


class KeyAdmin(NamedTuple):
    """On whose behalf keys are managed over HTTP: of one tenant, by one of its keys (None while there are no keys)."""

    tenant: str
    key_id: str | None


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
    role: Role

    def valid(self, at: datetime) -> bool:
        return self.state(at) == "valid"

    def state(self, at: datetime) -> KeyState:
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if self.expires_at is None or at < self.expires_at else "expired"


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
    """A short digest that distinguishes secrets and does not help to guess one."""
    return hashlib.sha256(secret.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


class KeyStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def add(
        self,
        *,
        tenant: str,
        name: str = "",
        expires_at: datetime | None = None,
        role: Role = Role.WRITE,
        by: KeyAdmin | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; returns it with its text, which is not stored and cannot be shown again.

        ``by`` is None for an operator. Raises NotAdmin, TooManyKeys, and InvalidRequest if no admin could call then.
        """
        plain = KEY_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        values = {
            "id": f"key_{secrets.token_hex(8)}",
            "tenant": tenant,
            "name": clean(name),
            "digest": digest_of(plain),
            "created_at": micros(now()),
            "expires_at": micros(expires_at) if expires_at else None,
            "revoked_at": None,
            "role": role.value,
        }
        async with self._database.write() as connection:
            if by is not None:
                await self._begin_for(connection, by)
                await _check_addition(connection, by, role, expires_at)
            await connection.execute(insert(api_keys), values)
            row = (await connection.execute(select(api_keys).where(api_keys.c.id == values["id"]))).one()
        return _key(row), plain

    async def list(self, tenant: str | None = None, *, limit: int | None = None) -> Sequence[ApiKey]:
        """All keys, including those that are no longer valid, newest first.

        Beyond ``limit``, those that are no longer valid are left out first.
        """
        newest = (api_keys.c.created_at.desc(), api_keys.c.id)
        query = select(api_keys).order_by(*(newest if limit is None else (_lasting().desc(), *newest))).limit(limit)
        if tenant is not None:
            query = query.where(api_keys.c.tenant == clean(tenant))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return sorted(map(_key, rows), key=lambda key: (-micros(key.created_at), key.id))

    @retried
    async def revoke(self, key_id: str, *, by: KeyAdmin | None = None) -> ApiKey:
        """Revoke a key for good. Idempotent. Raises KeyNotFound, NotAdmin, LastAdminKey."""
        async with self._database.write() as connection:
            if by is not None:
                await self._begin_for(connection, by)
                await _check_loss(connection, by, key_id)
            this = _this(key_id, by)
            await connection.execute(
                update(api_keys).where(this, api_keys.c.revoked_at.is_(None)).values(revoked_at=micros(now()))
            )
            row = (await connection.execute(select(api_keys).where(this))).first()
        if row is None:
            raise KeyNotFound
        return _key(row)

    @retried
    async def change(
        self, key_id: str, *, role: Role | None = None, name: str | None = None, by: KeyAdmin | None = None
    ) -> ApiKey:
        """Change a key's role or name, durably; all gateways apply it within two seconds.

        Raises KeyNotFound, NotAdmin, LastAdminKey.
        """
        values: dict[str, Any] = {"changes": api_keys.c.changes + 1}
        values |= {"role": role.value} if role is not None else {}
        values |= {"name": clean(name)} if name is not None else {}
        async with self._database.write() as connection:
            if by is not None:
                await self._begin_for(connection, by)
                if role not in (None, Role.ADMIN):
                    await _check_loss(connection, by, key_id)
            changed = update(api_keys).where(_this(key_id, by)).values(values).returning(*api_keys.c)
            row = (await connection.execute(changed)).first()
        if row is None:
            raise KeyNotFound
        return _key(row)

    async def _begin_for(self, connection: AsyncConnection, by: KeyAdmin) -> None:
        """Check that the caller is an admin at this moment, not only by a gateway's memory: a key that was demoted a
        moment ago must not raise itself again. Raises NotAdmin."""
        if not self._database.is_sqlite:  # two admins that demote each other at once would leave none
            await connection.execute(KEYS_LOCK)
        if by.key_id is None:
            known = (await connection.execute(select(api_keys.c.id).limit(1))).first()
            if known is not None:
                raise NotAdmin
        elif by.key_id not in await _admins(connection, by.tenant):
            raise NotAdmin

    async def find(self, digest: str) -> ApiKey | None:
        """The key with this digest, valid or not."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(api_keys).where(api_keys.c.digest == digest))).first()
        return _key(row) if row else None

    async def configured(self) -> bool:
        """Whether a key was ever added. Revoked ones count: revoking the last key must not open the service to all."""
        async with self._database.read() as connection:
            return (await connection.execute(select(api_keys.c.id).limit(1))).first() is not None

    async def changed(self, since: Mark | None) -> tuple[Mark, Sequence[ApiKey]] | None:
        """The valid keys; None if nothing has changed since a mark. (A key that has expired stays so for good.)"""
        changes = func.coalesce(func.sum(api_keys.c.changes), 0)
        marks = select(func.count(), func.count(api_keys.c.revoked_at), func.max(api_keys.c.created_at), changes)
        async with self._database.read() as connection:
            keys, revoked, newest, count = (await connection.execute(marks.select_from(api_keys))).one()
            mark: Mark = (keys, revoked, newest, int(count))
            if mark == since:
                return None
            rows = (await connection.execute(select(api_keys).where(_lasting()))).all()
        return mark, [_key(row) for row in rows]


class SecretStore:
    """Webhook secrets of tenants. (The default tenant's come from the settings.)"""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def rotate(self, tenant: str) -> tuple[TenantSecret, str]:
        """Make a secret; returns it with its text. The one that it replaces signs for 24 hours more."""
        plain = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        secret_id = f"sec_{secrets.token_hex(8)}"
        async with self._database.write() as connection:
            if not self._database.is_sqlite:  # two concurrent rotations would leave two newest secrets
                await connection.execute(ROTATION_LOCK)
            time = now()
            await _retire(connection, tenant, time)
            values = {"id": secret_id, "tenant": tenant, "secret": plain, "created_at": micros(time)}
            await connection.execute(insert(webhook_secrets), values)
        return TenantSecret(secret_id, tenant, fingerprint_of(plain), time, None), plain

    async def list(self, tenant: str | None = None) -> Sequence[TenantSecret]:
        """The secrets that still sign, newest first."""
        query = _signing(now())
        async with self._database.read() as connection:
            rows = (await connection.execute(query if tenant is None else query.where(_belongs_to(tenant)))).all()
        return [
            TenantSecret(row.id, row.tenant, fingerprint_of(row.secret), moment(row.created_at), _time(row.signs_until))
            for row in rows
        ]

    async def secrets_of(self, tenant: str) -> Sequence[str]:
        """The texts with which a tenant's deliveries are signed now, newest first."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_signing(now()).where(_belongs_to(tenant)))).all()
        return [row.secret for row in rows]


async def shared_secret(database: Database, name: str) -> bytes:
    """A random secret that all processes of this service share, made at its first use."""
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


def key_name(given: str) -> str:
    """The name of a key, checked. Raises ValueError."""
    if len(given) > LONGEST_KEY_NAME or not given.isprintable():
        raise ValueError(f"must be at most {LONGEST_KEY_NAME} printable characters")
    return given


def _this(key_id: str, by: KeyAdmin | None) -> Any:
    """The condition for a key that may be managed by somebody; None: an operator."""
    this = api_keys.c.id == clean(key_id)
    return this if by is None else and_(this, api_keys.c.tenant == clean(by.tenant))


def _valid_of(tenant: str) -> Any:
    """The condition for the valid keys of a tenant."""
    return and_(api_keys.c.tenant == clean(tenant), _lasting())


def _lasting() -> Any:
    """The condition for the keys that are valid now."""
    expires = api_keys.c.expires_at
    return and_(api_keys.c.revoked_at.is_(None), or_(expires.is_(None), expires > micros(now())))


async def _admins(connection: AsyncConnection, tenant: str) -> set[str]:
    """The ids of a tenant's valid keys with the role admin."""
    query = select(api_keys.c.id).where(_valid_of(tenant), api_keys.c.role == Role.ADMIN.value)
    return set((await connection.execute(query)).scalars())


async def _check_loss(connection: AsyncConnection, by: KeyAdmin, key_id: str) -> None:
    """Check that an admin is left without this key. Raises LastAdminKey."""
    if await _admins(connection, by.tenant) == {clean(key_id)}:
        raise LastAdminKey


async def _check_addition(connection: AsyncConnection, by: KeyAdmin, role: Role, expires_at: datetime | None) -> None:
    """Raises TooManyKeys, and InvalidRequest for a first key with which nobody could add the second."""
    if by.key_id is None and (role is not Role.ADMIN or expires_at is not None):
        why = "the first key must be one that stays, with the role admin: from then on every call needs a key"
        raise InvalidRequest([Problem("/role" if role is not Role.ADMIN else "/expiresAt", why)])
    count = await connection.scalar(select(func.count()).select_from(api_keys).where(_valid_of(by.tenant)))
    if (count or 0) >= MOST_KEYS:
        raise TooManyKeys


def _belongs_to(tenant: str) -> Any:
    return webhook_secrets.c.tenant == clean(tenant)


def _signing(time: datetime) -> Any:
    until = webhook_secrets.c.signs_until
    query = select(webhook_secrets).where(or_(until.is_(None), until > micros(time)))
    return query.order_by(until.is_(None).desc(), until.desc(), webhook_secrets.c.created_at.desc())


async def _retire(connection: AsyncConnection, tenant: str, time: datetime) -> None:
    """Limit the time of the secret that is replaced, and delete those that no longer sign."""
    until = webhook_secrets.c.signs_until
    await connection.execute(delete(webhook_secrets).where(_belongs_to(tenant), until <= micros(time)))
    await connection.execute(
        update(webhook_secrets)
        .where(_belongs_to(tenant), until.is_(None))
        .values(signs_until=micros(time + OLD_SECRET_SIGNS))
    )


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
        role=Role(row.role),
    )
