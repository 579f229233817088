"""Mistral's batch API as a BatchModel: files and batch jobs.

Requests and results go through temporary files: an upload has a known length (proxies refuse others), and a slow reader
of results does not hold a connection open for hours.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import ExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import httpx2
from mistralai.client import models

from chatjobs.contracts import ChatRequest
from domain.continuing import Practice
from domain.errors import UpstreamInterrupted, UpstreamRefused
from domain.ports import BatchAnswer, BatchLine, BatchPhase, LineOutcome, ModelBatch, PendingRequests
from domain.timings import Timings
from providers.mistral import batch_results
from providers.mistral.batch_results import ResultLine
from providers.mistral.chat import request_body
from providers.mistral.errors import Private, Withheld, failed_batch, mistral_errors, not_mistral
from providers.mistral.sdk import Operation, SdkCalls, error_answer, is_encoded, transfer_client

MAX_FILE_BYTES: Final = 512 * 1024 * 1024
MAX_REQUESTS: Final = 1_000_000
"""Of one file (Mistral's documentation, "Batch Processing" and "Known limitations")."""
MAX_RESULT_BYTES: Final = 4 * 1024 * 1024 * 1024
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
"""The limit of every response but the content of a file."""
PAGE: Final = 100
MAX_PAGES: Final = 100

_ENDPOINT: Final = "/v1/chat/completions"
_KEY: Final = "chatjobs_batch"
"""The entry of a job's metadata that has our key."""
_UPLOAD: Final = Operation("files_api_routes_upload_file", "files", "POST", "/v1/files")
_LIST_FILES: Final = Operation("files_api_routes_list_files", "files", "GET", "/v1/files")
_DELETE_FILE: Final = Operation("files_api_routes_delete_file", "files", "DELETE", "/v1/files/{file_id}")
_DOWNLOAD: Final = Operation(
    "files_api_routes_download_file", "files", "GET", "/v1/files/{file_id}/content", "application/octet-stream"
)
_CREATE: Final = Operation("jobs_api_routes_batch_create_batch_job", "batch.jobs", "POST", "/v1/batch/jobs")
_LIST: Final = Operation("jobs_api_routes_batch_get_batch_jobs", "batch.jobs", "GET", "/v1/batch/jobs")
_GET: Final = Operation("jobs_api_routes_batch_get_batch_job", "batch.jobs", "GET", "/v1/batch/jobs/{job_id}")
_CANCEL: Final = Operation(
    "jobs_api_routes_batch_cancel_batch_job", "batch.jobs", "POST", "/v1/batch/jobs/{job_id}/cancel"
)
_NOT_CANCELLABLE: Final = (400, 409, 422)
_PHASES: Final = {
    "QUEUED": BatchPhase.QUEUED,
    "RUNNING": BatchPhase.RUNNING,
    "CANCELLATION_REQUESTED": BatchPhase.CANCELLING,
    "SUCCESS": BatchPhase.DONE,
    "FAILED": BatchPhase.FAILED,
    "TIMEOUT_EXCEEDED": BatchPhase.TIMED_OUT,
    "CANCELLED": BatchPhase.CANCELLED,
}

log = logging.getLogger(__name__)


class MistralBatch:
    """Batch jobs of chat completions (domain.ports.BatchModel). Close it with ``aclose``."""

    def __init__(
        self,
        api_key: str | None,
        server_url: str | None,
        *,
        practice: Callable[[str], Practice],
        timings: Timings = Timings(),
        directory: Path | None = None,
    ) -> None:
        """``practice``: how the server continues a caller's own beginning of an answer, by model.

        ``directory``: of the temporary files, which have no name and vanish with the process; None: the system's.
        Raises ValueError for a malformed key or URL, without repeating it.
        """
        self._calls = SdkCalls(api_key, server_url, transfer_client(timings.batch_silence_seconds))
        self._practice = practice
        self._timings = timings
        self._directory = directory

    async def aclose(self) -> None:
        await self._calls.aclose()

    async def upload(self, key: str, requests: AsyncIterable[BatchLine]) -> str:
        """See BatchModel."""
        with tempfile.TemporaryFile(dir=self._directory) as file:
            async with aclosing(self._lines(requests)) as lines:
                await _written(file, lines)
            form = {"purpose": "batch"}
            files = {"file": (_name(key), file, "application/jsonl")}
            seconds = self._timings.batch_transfer_seconds
            return _id(await self._document(_UPLOAD, seconds, Withheld(), form=form, files=files))

    async def find(self, key: str, *, since: datetime) -> ModelBatch | None:
        """See BatchModel. Not every server may know the filters, so they are applied here, too."""
        found = None
        for page in range(MAX_PAGES):
            query = models.JobsAPIRoutesBatchGetBatchJobsRequest(
                page=page, page_size=PAGE, metadata={_KEY: key}, created_after=since, order_by="-created"
            )
            listed = _entries(await self._document(_LIST, parameters=query))
            for job in listed:
                if _metadata(job).get(_KEY) == key:
                    found = job
            if len(listed) < PAGE or _created(listed[-1]) < since:
                return None if found is None else _model_batch(found)
        raise not_mistral(f"its list of batch jobs has more than {MAX_PAGES} pages")

    async def create(self, key: str, file_id: str, model: str, *, timeout_hours: int) -> ModelBatch:
        """See BatchModel."""
        job = {
            "input_files": [file_id],
            "endpoint": _ENDPOINT,
            "model": model,
            "metadata": {_KEY: key},
            "timeout_hours": timeout_hours,
        }
        return _model_batch(await self._document(_CREATE, content=json.dumps(job).encode()))

    async def look(self, batch_id: str) -> ModelBatch:
        """See BatchModel."""
        query = models.JobsAPIRoutesBatchGetBatchJobRequest(job_id=batch_id)
        return _model_batch(await self._document(_GET, parameters=query))

    async def cancel(self, batch_id: str) -> ModelBatch:
        """See BatchModel. A job that has ended may refuse it: then it is returned as it is."""
        query = models.JobsAPIRoutesBatchCancelBatchJobRequest(job_id=batch_id)
        try:
            return _model_batch(await self._document(_CANCEL, parameters=query))
        except UpstreamRefused as error:
            batch = None if error.http_status not in _NOT_CANCELLABLE else await self.look(batch_id)
            if batch is None or not batch.phase.ended:
                raise
            return batch

    async def results(
        self, batch: ModelBatch, pending: PendingRequests
    ) -> AsyncGenerator[tuple[str, LineOutcome], None]:
        """See BatchModel."""
        skipped = 0
        with ExitStack() as stack:
            # Answers first: of an answer and an error for one request, the answer counts.
            files = [
                await self._downloaded(file_id, stack) for file_id in (batch.output_file, batch.error_file) if file_id
            ]
            for file in files:
                for group in batch_results.groups(file):
                    outcomes = await self._outcomes([line for line in group if line is not None], pending)
                    skipped += len(group) - len(outcomes)
                    for custom_id, outcome in outcomes.items():
                        yield custom_id, outcome
        if skipped:
            told = {"action": "batch_results_skipped", "batch": batch.id, "lines": skipped}
            log.warning("results of a batch job were of no request that awaits one", extra=told)

    async def delete_files(self, key: str, batch: ModelBatch | None) -> None:
        """See BatchModel."""
        query = models.FilesAPIRoutesListFilesRequest(page=0, page_size=PAGE, search=key, purpose="batch")
        listed = _entries(await self._document(_LIST_FILES, parameters=query))
        ids = [_id(file) for file in listed if file.get("filename") == _name(key)]
        if batch is not None:
            ids += [*batch.input_files, *filter(None, (batch.output_file, batch.error_file))]
        for file_id in dict.fromkeys(ids):
            await self._delete(file_id)

    async def _delete(self, file_id: str) -> None:
        query = models.FilesAPIRoutesDeleteFileRequest(file_id=file_id)
        try:
            async with self._response(_DELETE_FILE, self._timings.batch_call_seconds, Private(), parameters=query):
                pass
        except UpstreamRefused as error:
            if error.http_status != 404:  # it is gone already
                raise

    async def _lines(self, requests: AsyncIterable[BatchLine]) -> AsyncGenerator[bytes, None]:
        """The lines of the input file: each body is that of a live call, except for ``stream``."""
        async for custom_id, request in requests:
            body = request_body(request, None, self._practice(request.model), stream=False)
            yield b'{"custom_id":%b,"body":%b}\n' % (json.dumps(custom_id).encode(), body)

    async def _outcomes(self, lines: Iterable[ResultLine], pending: PendingRequests) -> dict[str, LineOutcome]:
        """The outcomes of lines whose requests await one; of several for one request, the first answer."""
        lines = list(lines)
        requests = await pending({line.custom_id for line in lines}) if lines else {}
        found = dict[str, LineOutcome]()
        for line in lines:
            request = requests.get(line.custom_id)
            if request is not None and not isinstance(found.get(line.custom_id), BatchAnswer):
                found[line.custom_id] = self._outcome(line, request)
        return found

    def _outcome(self, line: ResultLine, request: ChatRequest) -> LineOutcome:
        return batch_results.outcome(line, request, self._practice(request.model))

    # --------------------------------------------------------------------------------------------------- calls

    @asynccontextmanager
    async def _response(
        self, operation: Operation, seconds: float, private: Private, **what: Any
    ) -> AsyncIterator[httpx2.Response]:
        """A successful response, for ``seconds`` in all; what fails within the block is an UpstreamError, too."""
        try:
            async with asyncio.timeout(seconds):
                with mistral_errors(private):
                    response = await self._calls.send(operation, private, **what)
                    if response.status_code // 100 != 2 or is_encoded(response):
                        raise await error_answer(response, self._timings.model_error_seconds)
                try:
                    with mistral_errors(private, streaming=True):
                        yield response
                finally:
                    await response.aclose()
        except TimeoutError:
            raise _late(seconds) from None

    async def _document(
        self, operation: Operation, seconds: float | None = None, private: Private | None = None, **what: Any
    ) -> dict[str, Any]:
        """The JSON object that a call returns; ``seconds``: in place of the usual limit."""
        seconds = seconds or self._timings.batch_call_seconds
        body = bytearray()
        async with (
            self._response(operation, seconds, private or Private(), **what) as response,
            aclosing(response.aiter_bytes()) as chunks,
        ):
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise not_mistral(f"its response is longer than {MAX_DOCUMENT_BYTES} bytes")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise not_mistral("its response is not JSON") from None
        if not isinstance(document, dict):
            raise not_mistral("its response is not an object")
        return document

    async def _downloaded(self, file_id: str, stack: ExitStack) -> IO[bytes]:
        """The content of a file, in a temporary file at its beginning, which ``stack`` closes."""
        file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=self._directory))  # noqa: SIM115
        try:
            await self._download(file_id, file)
        except UpstreamRefused as error:
            if error.http_status != 404:
                raise
            message = "Mistral does not have the results of the batch job yet, or has deleted them; try again."
            raise UpstreamInterrupted(message, code="upstream_unavailable", http_status=404) from None
        file.seek(0)
        return file

    async def _download(self, file_id: str, file: IO[bytes]) -> None:
        query = models.FilesAPIRoutesDownloadFileRequest(file_id=file_id)
        seconds = self._timings.batch_transfer_seconds
        async with self._response(_DOWNLOAD, seconds, Withheld(), parameters=query) as response:
            left = MAX_RESULT_BYTES
            async with aclosing(response.aiter_bytes()) as chunks:
                async for chunk in chunks:
                    left -= len(chunk)
                    if left < 0:
                        raise _too_large("The results of the batch job are")
                    file.write(chunk)
            framed = not response.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
            if not framed and batch_results.ends_within_a_line(file):
                raise httpx2.RemoteProtocolError("the connection was closed within a line")
        file.seek(0)
        if file.read(4096).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] not in (b"", b"{"):
            raise not_mistral("the content of a file of results is not JSON")


async def _written(file: IO[bytes], lines: AsyncIterable[bytes]) -> None:
    """Write the lines. Raises UpstreamRefused (``upstream_too_large``)."""
    size = number = 0
    async for line in lines:
        size, number = size + len(line), number + 1
        if size > MAX_FILE_BYTES or number > MAX_REQUESTS:
            raise _too_large("The requests of the batch job are")
        file.write(line)
    file.flush()  # its length is asked of the operating system
    file.flush()  # its length is asked of the operating system


def _too_large(what: str) -> UpstreamRefused:
    return UpstreamRefused(f"{what} larger than Mistral's limits or ours; divide it.", code="upstream_too_large")


def _late(seconds: float) -> UpstreamInterrupted:
    return UpstreamInterrupted(f"Mistral did not answer within {seconds:g} s; try again.", code="upstream_timeout")


def _name(key: str) -> str:
    return f"{key}.jsonl"


# -------------------------------------------------------------------------------------------- values of documents


def _model_batch(job: dict[str, Any]) -> ModelBatch:
    """A job as Mistral shows it. An unknown status counts as running: the caller's own deadline ends the wait."""
    phase = _PHASES.get(str(job.get("status")).upper(), BatchPhase.RUNNING)
    inputs, errors = job.get("input_files"), job.get("errors")
    return ModelBatch(
        id=_id(job),
        phase=phase,
        total=_count(job.get("total_requests")),
        succeeded=_count(job.get("succeeded_requests")),
        failed=_count(job.get("failed_requests")),
        input_files=tuple(filter(None, map(_text, inputs if isinstance(inputs, list) else ()))),
        output_file=_text(job.get("output_file")),
        error_file=_text(job.get("error_file")),
        failure=failed_batch(errors if isinstance(errors, list) else []) if phase is BatchPhase.FAILED else None,
    )


def _entries(document: dict[str, Any]) -> list[dict[str, Any]]:
    entries = document.get("data")
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise not_mistral("its list is no list of objects")
    return entries


def _id(document: dict[str, Any]) -> str:
    found = _text(document.get("id"))
    if found is None:
        raise not_mistral("a file or batch job has no id")
    return found


def _metadata(job: dict[str, Any]) -> dict[str, Any]:
    found = job.get("metadata")
    return found if isinstance(found, dict) else {}


def _created(job: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(_count(job.get("created_at")), UTC)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 else 0
