"""The valid keys in memory, so that no request waits for the database; news of them come within two seconds."""

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
"""Characters. Ours have 46; nobody has to hash more for whoever has none."""
LOOKUPS_PER_SECOND = 10.0
MOST_LOOKUPS = 20
REASONS_PER_SECOND = 0.5
MOST_REASONS = 10
MOST_REFUSED = 10_000
NOBODY = "0" * 64
"""Compared with where there is nothing to compare with: it takes the same time."""


class TokenBucket:
    """A token bucket: so many at once, so many per second."""

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
    """``open``: nobody ever added a key, so none is asked for."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._by_digest: dict[str, ApiKey] = {}
        self._by_id: dict[str, ApiKey] = {}
        self._mark: Mark | None = None
        self._lookups = TokenBucket(MOST_LOOKUPS, LOOKUPS_PER_SECOND)
        self._reasons = TokenBucket(MOST_REASONS, REASONS_PER_SECOND)
        self._refused: set[str] = set()
        self._loading = asyncio.Lock()  # what was read first must not be written last
        self._away = False
        self.open = False

    async def reload(self) -> None:
        """Raises StorageUnavailable."""
        async with self._loading:
            changed = await self._store.changed(self._mark)
            if changed is not None:
                self._mark, keys = changed
                self._by_digest = {key.digest: key for key in keys}
                self._by_id = {key.id: key for key in keys}
                self.open = self._mark[0] == 0
                self._refused.clear()

    async def refresh(self) -> None:
        """``reload`` that says when the database is away, and goes on with what it knows."""
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
        """A key that is valid now."""
        return _valid(self._by_id.get(key_id))

    def valid_ids(self) -> AbstractSet[str]:
        at = now()
        return {key.id for key in self._by_id.values() if key.valid(at)}

    async def find(self, presented: str) -> ApiKey | None:
        """The valid key that was sent. Whatever is wrong with it, the answer takes as long.

        One that is not known here may have been added a moment ago: the database is asked, once for each, and not by
        everybody who tries keys out. Raises StorageUnavailable.
        """
        digest = digest_of(presented if len(presented) <= LONGEST_KEY else "")
        found = _compared(self._by_digest.get(digest), digest)
        if found is None and digest not in self._refused and self._lookups.take():
            found = _compared(await self._store.find(digest), digest)
            if found is None:
                self._refuse(digest)
            else:
                await self.reload()
        return found

    async def refused(self, presented: str) -> ApiKey | Literal["unknown", "too_many"]:
        """Why ``find`` has just found nothing: the key as it is, expired or revoked, of which only its holder is told.

        Raises StorageUnavailable.
        """
        if not self._reasons.take():
            return "too_many"
        digest = digest_of(presented if len(presented) <= LONGEST_KEY else "")
        return await self._store.find(digest) or "unknown"

    def _refuse(self, digest: str) -> None:
        """What is no key now will not be one later: keys are random."""
        if len(self._refused) >= MOST_REFUSED:
            self._refused.clear()
        self._refused.add(digest)


def _compared(key: ApiKey | None, digest: str) -> ApiKey | None:
    same = hmac.compare_digest(key.digest if key else NOBODY, digest)
    return _valid(key) if same else None


def _valid(key: ApiKey | None) -> ApiKey | None:
    return key if key is not None and key.valid(now()) else None
