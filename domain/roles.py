"""The roles of API keys."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a key may do; each role may do what those before it may, too."""

    READ = "read"
    """Look at everything of its tenant, streams included."""
    WRITE = "write"
    """Start, change and delete jobs, batches, schedules, endpoints."""
    ADMIN = "admin"
    """Manage keys, secrets and limits."""

    def covers(self, needed: Role) -> bool:
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(needed)
