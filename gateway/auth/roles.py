"""What each route needs: the one table of roles, and its enforcement.

``read`` looks, ``write`` starts, changes and deletes, ``admin`` manages keys, secrets and limits; each role may do what
the ones before it may. A route that is not in the table needs ``admin``, and a test fails for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request

from domain.roles import Role
from gateway.auth.access import Identity
from gateway.problems import HttpProblem

OPEN = """
    GET /
    GET /assets/{path:path}
    GET /batches
    GET /batches/{batch_id}
    GET /docs
    GET /healthz
    GET /jobs
    GET /jobs/
    GET /jobs/{job_id}
    GET /openapi.json
    GET /readyz
    GET /schedules
    GET /settings
    GET /threads/{thread}
    DELETE /api/session
    GET /api/session
    POST /api/session
"""
"""For everybody: the page's files, which show nothing by themselves, its login, and health."""
READ = """
    GET /api/batches
    GET /api/batches/{batch_id}
    GET /api/batches/{batch_id}/errors
    GET /api/batches/{batch_id}/events
    GET /api/batches/{batch_id}/output
    GET /api/counts
    GET /api/endpoints
    GET /api/events
    GET /api/feed
    GET /api/jobs
    GET /api/jobs/{job_id}
    GET /api/jobs/{job_id}/deliveries
    GET /api/jobs/{job_id}/events
    GET /api/jobs/{job_id}/request
    POST /api/jobs/{job_id}/stream-token
    GET /api/lanes
    GET /api/pauses
    GET /api/replays
    GET /api/replays/{batch_id}
    GET /api/schedules
    GET /api/schedules/{schedule_id}
    GET /api/stats
    GET /metrics
    GET /v1/batch/jobs
    GET /v1/batch/jobs/{batch_job_id}
    GET /v1/files
    GET /v1/files/{file_id}
    GET /v1/files/{file_id}/content
    GET /v1/files/{file_id}/url
    GET /v1/models
    GET /v1/models/{model_id:path}
    GET /v1/responses/{response_id}
    GET /v1/responses/{response_id}/input_items
"""
WRITE = """
    POST /api/batches
    POST /api/batches/{batch_id}/cancel
    POST /api/batches/{batch_id}/pause
    POST /api/batches/{batch_id}/resume
    POST /api/chat/stream
    DELETE /api/endpoints
    POST /api/endpoints
    POST /api/endpoints/enable
    POST /api/jobs
    DELETE /api/jobs/{job_id}
    POST /api/jobs/{job_id}/cancel
    POST /api/jobs/{job_id}/deliveries/{delivery_id}/redeliver
    POST /api/jobs/{job_id}/redeliver
    POST /api/jobs/{job_id}/replay
    POST /api/jobs/{job_id}/resume
    POST /api/pauses
    DELETE /api/pauses/{pause_id}
    POST /api/redeliveries
    POST /api/replays
    POST /api/replays/{batch_id}/cancel
    POST /api/replays/{batch_id}/pause
    POST /api/replays/{batch_id}/resume
    POST /api/schedules
    DELETE /api/schedules/{schedule_id}
    POST /api/schedules/{schedule_id}/pause
    POST /api/schedules/{schedule_id}/resume
    POST /api/schedules/{schedule_id}/trigger
    POST /api/webhooks/test
    POST /v1/batch/jobs
    DELETE /v1/batch/jobs/{batch_job_id}
    POST /v1/batch/jobs/{batch_job_id}/cancel
    POST /v1/chat/completions
    POST /v1/files
    DELETE /v1/files/{file_id}
    POST /v1/responses
    DELETE /v1/responses/{response_id}
    POST /v1/responses/{response_id}/cancel
"""
ADMIN = """
    GET /api/keys
    POST /api/keys
    DELETE /api/keys/{key_id}
    PATCH /api/keys/{key_id}
    PUT /api/lanes/{lane:path}/limits
    GET /api/secrets
    POST /api/secrets
    GET /api/settings
"""


def _table() -> Mapping[tuple[str, str], Role | None]:
    sections = ((OPEN, None), (READ, Role.READ), (WRITE, Role.WRITE), (ADMIN, Role.ADMIN))
    lines = ((line.split(), role) for text, role in sections for line in text.strip().splitlines())
    return {(method, path): role for (method, path), role in lines}


NEEDED = _table()
"""The role for each method and path; None: no key is needed."""


def check_role(request: Request, caller: Identity) -> None:
    """Check that the caller's role covers what the route needs. Raises HttpProblem (403)."""
    route = request.scope["route"].path
    needed = NEEDED.get((request.scope["method"], route), Role.ADMIN)
    if needed is None or caller.role.covers(needed):
        return
    command = f"starter.py keys role {caller.key_id or 'ID'} {needed}"
    detail = (
        f"This needs a key with the role {needed}, and this one has the role {caller.role}. An admin of your tenant "
        f"gives it that role in the page's settings, an operator with `{command}`"
    )
    raise HttpProblem(403, "role_required", detail)
