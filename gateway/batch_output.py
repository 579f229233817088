"""The lines of a batch's output."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from chatjobs.contracts import JobStatus, OutputError, OutputLine, OutputResponse
from domain.chat_completion import chat_completion
from storage.batches.queries import BatchQueries, OutputItem

CANCELLED = OutputError(code="cancelled", message="The job was cancelled")
DELETED = OutputError(code="content_deleted", message="The content of this job was deleted")


async def output_pages(queries: BatchQueries, batch_id: str, *, errors: bool) -> AsyncGenerator[bytes, None]:
    """The lines of a batch's output or errors, in pages whose size does not depend on the batch's."""
    async for items in queries.output(batch_id, errors=errors):
        yield b"".join(map(output_line, items))


def output_line(item: OutputItem) -> bytes:
    """A line of JSON for an item that has ended."""
    result = item.result
    response = error = None
    if result.deleted_at is not None:
        error = DELETED
    elif result.status is JobStatus.CANCELLED:
        error = CANCELLED
    elif result.status is JobStatus.FAILED:
        error = OutputError(code="internal", message="The job failed")
        if result.error is not None:
            error = OutputError(code=result.error.code, message=result.error.message)
    else:
        response = OutputResponse(status_code=200, body=chat_completion(result))
    line = OutputLine(id=result.job_id, custom_id=item.custom_id, response=response, error=error)
    return line.model_dump_json().encode() + b"\n"
