"""The errors that only the service itself has; see chatjobs/errors.py.

ChatJobsError
├── WebhookError
│   └── WebhookUrlRefused
│       └── WebhookAddressDenied
├── KeyNotFound
├── NotAdmin
├── LastAdminKey
├── TooManyKeys
├── SearchUnavailable
├── RunNotFound
├── FileNotFound
├── BatchJobNotFound
├── UpstreamError
│   ├── UpstreamRefused
│   ├── UpstreamRateLimited
│   └── UpstreamInterrupted
├── StorageError
│   ├── StorageUnavailable
│   │   └── StorageFull
│   ├── StorageRefused
│   ├── FenceLost
│   └── SealConflict
└── TemporalUnavailable
    └── ServiceNotRunning
"""

from __future__ import annotations

from typing import ClassVar

from chatjobs.errors import ChatJobsError, WebhookUrlRefused


class KeyNotFound(ChatJobsError):
    """There is no key with this id; look at `starter.py keys list`."""

    code = "key_not_found"


class NotAdmin(ChatJobsError):
    """This needs a key with the role admin; an operator gives it one with `starter.py keys role ID admin`."""

    code = "role_required"


class LastAdminKey(ChatJobsError):
    """It is the tenant's last valid key with the role admin, and nobody could manage keys without it; give another key
    that role first."""

    code = "last_admin_key"


class TooManyKeys(ChatJobsError):
    """The tenant has 1,000 valid keys, which is the most; revoke one first."""

    code = "too_many_keys"


class SearchUnavailable(ChatJobsError):
    """This database has no full-text index, because it was made by a Python whose SQLite lacks FTS5. Run the service
    with a Python that has it (`starter.py doctor` checks), or on Postgres; everything but the search works as it is."""

    code = "search_unavailable"


class RunNotFound(ChatJobsError):
    """Temporal has no run of this; give the id of a job, of a delivery (whe_…) or of a workflow."""

    code = "run_not_found"


class FileNotFound(ChatJobsError):
    """There is no file with this id; GET /v1/files lists them."""

    code = "file_not_found"


class BatchJobNotFound(ChatJobsError):
    """There is no batch job with this id; GET /v1/batch/jobs lists them."""

    code = "batch_job_not_found"


class UpstreamError(ChatJobsError):
    """Mistral did not give an answer."""

    code = "upstream_error"
    retryable: ClassVar[bool] = True

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        http_status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        """``retry_after`` is in seconds, as the answer's header said, not yet clamped."""
        super().__init__(message)
        self.reason = code or self.code
        self.http_status = http_status
        self.retry_after = retry_after


class UpstreamRefused(UpstreamError):
    """Mistral refused the request; sending it again would not help."""

    code = "upstream_refused"
    retryable = False


class UpstreamRateLimited(UpstreamError):
    """Mistral asked us to slow down."""

    code = "upstream_rate_limited"


class UpstreamInterrupted(UpstreamError):
    """The stream ended before the answer did."""

    code = "upstream_interrupted"


class StorageError(ChatJobsError):
    """The database could not do what was asked."""

    code = "storage_error"


class StorageUnavailable(StorageError):
    """The database is not reachable, locked or full; try again in a moment."""

    code = "storage_unavailable"


class StorageFull(StorageUnavailable):
    """The database has no space left; free some, or wait until somebody does."""

    code = "storage_full"


class StorageRefused(StorageError):
    """The database refused this text."""

    code = "storage_refused"


class FenceLost(StorageError):
    """Another attempt has taken this job over; this one must stop writing."""

    code = "fence_lost"


class SealConflict(StorageError):
    """The transcript is not at the position that was reported; it was not sealed."""

    code = "seal_conflict"


class TemporalUnavailable(ChatJobsError):
    """Temporal is not reachable; check that the server runs and TEMPORAL_ADDRESS."""

    code = "temporal_unavailable"


class ServiceNotRunning(TemporalUnavailable):
    """No service runs here; start one with `make run`, or set TEMPORAL_ADDRESS and CHATJOBS_DATABASE_URL."""

    code = "service_not_running"


class WebhookAddressDenied(WebhookUrlRefused):
    """Webhooks may not be sent to this address."""
