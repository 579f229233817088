"""The valid keys in memory, so that no request waits for the database; changes take effect within two seconds."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Set as AbstractSet
from typing import Literal

from domain.errors import StorageError
from storage.engine.schema import now
from storage.keys import ApiKey, KeyStore, Mark, digest_of

log = logging.getLogger(__name__)

RELOAD_SECONDS = 1.0
LONGEST_KEY = 256
"""Characters of a key that are hashed at most; our keys have 46."""
LOOKUPS_PER_SECOND = 10.0
MOST_LOOKUPS = 20
REASONS_PER_SECOND = 0.5
MOST_REASONS = 10
MOST_REFUSED = 10_000
NOBODY = "0" * 64
"""Compared with if there is no key, so that the comparison takes the same time."""


class TokenBucket:
    """A token bucket that holds ``most`` tokens and gains ``per_second``."""

    def __init__(self, most: int, per_second: float) -> None:
        self._most, self._per_second = most, per_second
        self._left, self._at = float(most), time.monotonic()

    def take(self) -> bool:
        at = time.monotonic()
        self._left = min(self._most, self._left + (at - self._at) * self._per_second)
        self._at = at
        if self._left < 1:
            return False
        self._left -= 1
        return True


class KeyCache:
    """The keys of the database. ``open``: no key was ever added, so none is required."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._by_digest: dict[str, ApiKey] = {}
        self._by_id: dict[str, ApiKey] = {}
        self._mark: Mark | None = None
        self._lookups = TokenBucket(MOST_LOOKUPS, LOOKUPS_PER_SECOND)
        self._reasons = TokenBucket(MOST_REASONS, REASONS_PER_SECOND)
        self._refused: set[str] = set()
        self._loading = asyncio.Lock()  # an older read must not overwrite a newer one
        self._away = False
        self.open = False

    async def reload(self) -> None:
        """Read the keys again if they have changed. Raises StorageUnavailable."""
        async with self._loading:
            changed = await self._store.changed(self._mark)
            if changed is not None:
                self._mark, keys = changed
                self._by_digest = {key.digest: key for key in keys}
                self._by_id = {key.id: key for key in keys}
                self.open = self._mark[0] == 0
                self._refused.clear()

    async def refresh(self) -> None:
        """``reload``, but a database error is logged, once per outage, and the known keys stay in use."""
        try:
            await self.reload()
            self._away = False
        except StorageError as error:
            if not self._away:
                log.warning("keys are not reloaded: %s", error, extra={"action": "keys_wait"})
            self._away = True
        except Exception:
            log.exception("keys are not reloaded", extra={"action": "keys_wait"})

    def by_id(self, key_id: str) -> ApiKey | None:
        """The key with this id if it is valid now."""
        return _valid(self._by_id.get(key_id))

    def valid_ids(self) -> AbstractSet[str]:
        at = now()
        return {key.id for key in self._by_id.values() if key.valid(at)}

    async def find(self, presented: str) -> ApiKey | None:
        """The valid key for the presented text, in constant time whatever is wrong with it.

        A key that is not in memory may have been added just now, so it is looked up in the database: once per key, and
        rate-limited against guessing. Raises StorageUnavailable.
        """
        digest = digest_of(presented if len(presented) <= LONGEST_KEY else "")
        found = _compared(self._by_digest.get(digest), digest)
        if found is None and digest not in self._refused and self._lookups.take():
            found = _compared(await self._store.find(digest), digest)
            if found is None:
                self._remember_unknown(digest)
            else:
                await self.reload()
        return found

    async def refused(self, presented: str) -> ApiKey | Literal["unknown", "too_many"]:
        """Why ``find`` returned None: the expired or revoked key (only its holder can present it), or a word.

        Raises StorageUnavailable.
        """
        if not self._reasons.take():
            return "too_many"
        digest = digest_of(presented if len(presented) <= LONGEST_KEY else "")
        return await self._store.find(digest) or "unknown"

    def _remember_unknown(self, digest: str) -> None:
        """Remember a digest that is no key; it will not become one, because keys are random."""
        if len(self._refused) >= MOST_REFUSED:
            self._refused.clear()
        self._refused.add(digest)


def _compared(key: ApiKey | None, digest: str) -> ApiKey | None:
    same = hmac.compare_digest(key.digest if key else NOBODY, digest)
    return _valid(key) if same else None


def _valid(key: ApiKey | None) -> ApiKey | None:
    return key if key is not None and key.valid(now()) else None
