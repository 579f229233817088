"""A stored job as a response."""

from __future__ import annotations

from typing import NamedTuple

from chatjobs.contracts import read_json
from chatjobs.errors import ContentDeleted, JobNotFound
from domain.values import StoredJob
from domain.webhook_body import RESPONSE_ID_PREFIX
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.v1.responses_request import ResponseSettings, settings_of


class FoundResponse(NamedTuple):
    """A job without its texts, and its settings as a response."""

    job: StoredJob
    settings: ResponseSettings
    kept: bool = True


def not_found() -> HttpProblem:
    return HttpProblem(404, "response_not_found", "There is no response with this id")


async def found_response(here: Dependencies, caller: Identity, response_id: str) -> FoundResponse:
    """The response with an id. Raises HttpProblem (404), StorageUnavailable."""
    found = await found_job(here, caller, job_id_of(response_id))
    if not found.kept:
        raise not_found()
    return found


async def found_job(here: Dependencies, caller: Identity, job_id: str) -> FoundResponse:
    """The job with an id as a response, also one that is not to be kept. Raises HttpProblem (404)."""
    try:
        job = await here.jobs.queries.outline(job_id, caller.tenant)
        if job.deleted_at is not None:
            raise not_found()
        form = await here.jobs.queries.response_form(job_id)
        if form is not None:
            return FoundResponse(job, read_json(ResponseSettings, form.settings), form.kept)
        return FoundResponse(job, settings_of(await here.jobs.queries.request(job_id, caller.tenant)))
    except (JobNotFound, ContentDeleted):
        raise not_found() from None


def job_id_of(response_id: str) -> str:
    """The id of the job that a response is. Raises HttpProblem (404)."""
    if not response_id.startswith(RESPONSE_ID_PREFIX):
        raise not_found()
    return response_id.removeprefix(RESPONSE_ID_PREFIX)
