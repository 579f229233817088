"""ChatJobs and AsyncChatJobs: the clients of the service. They start jobs, read them and stream their answers.

    with ChatJobs("http://127.0.0.1:8000") as jobs:
        accepted = jobs.submit("Why is the sky blue?")
        for event in jobs.stream(accepted.job_id):
            match event:
                case ChunkEvent(content=text):
                    print(text, end="")

    async with AsyncChatJobs("http://127.0.0.1:8000") as jobs:
        accepted = await jobs.submit("Why is the sky blue?")
        async for event in jobs.stream(accepted.job_id): ...

The client may repeat every call without harm: calls that start something carry an idempotency key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import math
import re
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
    Sized,
)
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, Self

import httpx2

from chatjobs import feed
from chatjobs.batches import BatchCalls, SyncBatchCalls
from chatjobs.calls import CONNECTIONS, Backoff, Http, exponential, new_client
from chatjobs.contracts import (
    JOB_ID,
    Batch,
    CancelledEvent,
    Channel,
    ChatRequest,
    ChunkEvent,
    CompleteEvent,
    Delivery,
    Endpoint,
    EndpointList,
    ErrorEvent,
    FeedEvent,
    FeedEventType,
    Job,
    JobAccepted,
    JobError,
    JobPage,
    JobStatus,
    Lane,
    LaneList,
    Pause,
    PauseList,
    PauseRequest,
    Redelivering,
    Redelivery,
    ReplayEstimate,
    ReplayFilter,
    ResetEvent,
    StreamEvent,
    WebhookTest,
    WireModel,
    canonical_json,
    rfc3339,
)
from chatjobs.errors import (
    ApiError,
    ChatJobsError,
    ContentDeleted,
    DeliveryNotFound,
    JobFailed,
    JobNotFound,
    PauseNotFound,
    ServiceUnavailable,
    StreamBroken,
)
from chatjobs.prompts import Prompt, each, json_bytes, named, request_body
from chatjobs.schedules import Schedules, SyncSchedules
from chatjobs.sse import MAX_EVENT_BYTES, JobEvents
from chatjobs.stream import Stream
from chatjobs.sync import Bridge, Twin, call, constructor, items, stream

DAY: Final = 24 * 3600.0
"""In seconds."""
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of a response that a client reads, unless it is given another limit."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The number of prompts of ``AsyncChatJobs.map`` that are done, and of those that failed, which are among them.

    ``total`` is None if the prompts have no length.
    """

    done: int
    failed: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of prompt number ``index`` of ``AsyncChatJobs.map``, from 0.

    ``error`` says why there is no answer, and is None if there is one; ``job`` is None unless the job has ended.
    """

    index: int
    job: Job | None
    error: ChatJobsError | None

    @property
    def content(self) -> str | None:
        """The text of the answer; None if there is none."""
        return self.job.content if self.job is not None and self.error is None else None


class _Cancelled(WireModel):
    job_id: str
    status: JobStatus


# ------------------------------------------------------------------------------------------------ client


class AsyncChatJobs:
    """An asynchronous client of the service at ``base_url``. Use it as ``async with``, or close it with ``aclose``.

    ``timeout``: seconds for a call with all its repetitions. ``patience``: seconds that a stream waits for a byte from
    the service, over all its connections. ``silence``: seconds without a byte after which a connection counts as dead;
    the service sends something every 15 s. ``max_response_bytes`` bounds a response, ``max_event_bytes`` an event of a
    stream.

    Methods raise ServiceUnavailable once that time is up, Unauthorized, ApiError, and the errors that they name.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
        timeout: float = 60.0,
        patience: float = 300.0,
        silence: float = 45.0,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        max_event_bytes: int = MAX_EVENT_BYTES,
        backoff: Backoff = exponential,
    ) -> None:
        """``transport`` and ``backoff`` replace the network and the waits, for tests. Raises ConfigurationError."""
        self._http = Http(new_client(base_url, api_key, transport, silence), timeout, max_response_bytes, backoff)
        self.schedules = Schedules(self._http)
        """Calls for schedules."""
        self._patience = patience
        self._silence = silence
        self._max_event_bytes = max_event_bytes
        self.batches = BatchCalls(self._http, patience=patience, silence=silence, max_event_bytes=max_event_bytes)
        """The calls on batches."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Jobs continue."""
        await self._http.client.aclose()

    async def submit(self, /, prompt: Prompt, *, idempotency_key: str | None = None, **fields: Any) -> JobAccepted:
        """Start a job; it is durable once this returns.

        ``fields`` are those of ChatRequest (``model="…"``, ``callback="https://…"``, ``metadata={…}``). The same
        ``idempotency_key`` with the same request is the same job; without one, a new key makes repetitions safe.
        Raises InvalidRequest, IdempotencyMismatch, JobIdConflict, WebhookUrlRefused.
        """
        body = request_body(prompt, fields)
        return await self._http.read(JobAccepted, "POST", "/api/jobs", body=body, key=idempotency_key or _new_key())

    async def reply(
        self, /, job_id: str, prompt: Prompt, *, idempotency_key: str | None = None, **fields: Any
    ) -> JobAccepted:
        """Start the next job of a conversation: with the messages of a job that has ended, its answer, and ``prompt``.

        The model is that of the job, unless ``fields`` or a whole request as ``prompt`` name another; nothing else is
        taken over. Raises JobNotFound, JobRunning while the job has not ended, ContentDeleted, InvalidRequest for a
        job without text, and what ``submit`` raises.
        """
        asked = prompt.model_fields_set if isinstance(prompt, ChatRequest) else ()
        model = (await self.get(job_id)).model
        if model and "model" not in asked:
            fields = {"model": model} | fields
        return await self.submit(prompt, idempotency_key=idempotency_key, previous_job_id=job_id, **fields)

    async def get(self, job_id: str) -> Job:
        """The job as it is now, with partial text while it runs. Raises JobNotFound."""
        return await self._http.read(Job, "GET", _path(job_id))

    async def wait(self, job_id: str, timeout: float = DAY) -> Job:
        """The job once it has ended, with any terminal status.

        ``timeout`` is in seconds. Raises JobNotFound, TimeoutError and what ``stream`` raises.
        """
        async with asyncio.timeout(timeout):
            while not (job := await self.get(job_id)).status.terminal:
                with contextlib.suppress(ContentDeleted):  # it ended and was deleted meanwhile
                    async with self.stream(job_id, timeout=math.inf) as events:
                        async for _ in events:
                            pass
            return job

    def stream(self, job_id: str, *, last_event_id: str = "", timeout: float = DAY) -> Stream[StreamEvent]:
        """The events of a job from the beginning, or after ``last_event_id``, to its terminal one.

        A broken connection is opened again and the stream continues where it was: no event is lost or comes twice.
        ``timeout`` is in seconds, for the whole stream. Raises StreamBroken if ``last_event_id`` is not an event's id;
        iterating raises JobNotFound, ContentDeleted, TimeoutError, StreamBroken and ResponseTooLarge.
        """
        events = JobEvents(last_event_id=last_event_id, limit=self._max_event_bytes)
        return Stream(self._http, f"{_path(job_id)}/events", events, self._patience, self._silence, timeout)

    async def answer(self, job_id: str, timeout: float = DAY) -> str:
        """The whole text of the answer once it is complete, or as long as a limit allowed.

        ``timeout`` is in seconds. Raises JobFailed if there is no answer, JobNotFound, ContentDeleted, TimeoutError,
        ResponseTooLarge and StreamBroken.
        """
        pieces: list[str] = []
        size = 0
        async with self.stream(job_id, timeout=timeout) as events:
            async for event in events:
                match event:
                    case ChunkEvent(channel=Channel.CONTENT, content=text):
                        pieces.append(text)
                        size += len(text)
                        self._http.check(size)
                    case ResetEvent():
                        pieces, size = [], 0
                    case CompleteEvent(sha256=expected):
                        return _checked("".join(pieces), expected)
                    case ErrorEvent():
                        raise failed(event)
                    case CancelledEvent():
                        raise JobFailed("The job was cancelled", reason="cancelled")
        raise StreamBroken

    async def ask(
        self, /, prompt: Prompt, *, idempotency_key: str | None = None, timeout: float = DAY, **fields: Any
    ) -> Job:
        """``submit`` and ``wait``: the job once it has ended. ``timeout`` is in seconds. Raises what they raise."""
        accepted = await self.submit(prompt, idempotency_key=idempotency_key, **fields)
        return await self.wait(accepted.job_id, timeout)

    async def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job, durably; its status now. A second call does the same. Raises JobNotFound, JobFinished."""
        return (await self._http.read(_Cancelled, "POST", f"{_path(job_id)}/cancel")).status

    async def delete(self, job_id: str) -> None:
        """Delete the texts and deliveries of a finished job. A second call does the same.

        Raises JobNotFound, JobRunning.
        """
        with contextlib.suppress(ContentDeleted):
            await self._http.call("DELETE", _path(job_id))

    async def replay(self, /, job_id: str, *, idempotency_key: str | None = None, **overrides: Any) -> JobAccepted:
        """Start a new job with the request of this one and the fields given; None unsets a field.

        Raises JobNotFound, ContentDeleted, and what ``submit`` raises.
        """
        body = json_bytes(named(overrides)) if overrides else None
        path = f"{_path(job_id)}/replay"
        return await self._http.read(JobAccepted, "POST", path, body=body, key=idempotency_key or _new_key())

    async def replay_all(
        self,
        /,
        *,
        canary: int | None = None,
        max_error_rate: float | None = None,
        overrides: Mapping[str, Any] | None = None,
        name: str | None = None,
        concurrency: int | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
        **chosen: Any,
    ) -> Batch:
        """Start a replay of all jobs that match ``chosen``, the fields of ReplayFilter (``status="failed"``,
        ``since=…``, which is aware): a batch that has one new job for each of them.

        With a ``canary`` so many run first, and the others unless more than the part ``max_error_rate`` of them fails
        (0.5). ``overrides`` are fields of a request that change; None unsets one. Raises InvalidRequest,
        IdempotencyMismatch, WebhookUrlRefused.
        """
        settings = {"canary": canary, "maxErrorRate": max_error_rate, "name": name, "webhook": webhook}
        given = {
            field: value for field, value in (settings | {"concurrency": concurrency}).items() if value is not None
        }
        body = given | {"filter": named(chosen, ReplayFilter), "overrides": named(overrides or {})}
        key = idempotency_key or _new_key()
        return await self._http.read(Batch, "POST", "/api/replays", body=json_bytes(body), key=key)

    async def estimate_replay(self, /, *, overrides: Mapping[str, Any] | None = None, **chosen: Any) -> ReplayEstimate:
        """What ``replay_all`` would do now: how many jobs, which ones first, and about how many tokens.

        Raises InvalidRequest.
        """
        body = {"filter": named(chosen, ReplayFilter), "overrides": named(overrides or {}), "dryRun": True}
        return await self._http.read(ReplayEstimate, "POST", "/api/replays", body=json_bytes(body))

    async def resume(self, job_id: str) -> JobAccepted:
        """Let a job that failed or was cancelled go on from its text: the same job, whose streams go on.

        Raises JobNotFound, ContentDeleted, JobFinished, NothingToResume, and JobRunning: also if it is an earlier try
        of this call that has resumed the job.
        """
        return await self._http.read(JobAccepted, "POST", f"{_path(job_id)}/resume")

    async def deliveries(self, job_id: str) -> tuple[Delivery, ...]:
        """The job's deliveries with all their tries. Raises JobNotFound."""
        return (await self.get(job_id)).deliveries

    async def redeliver(self, job_id: str, delivery_id: str | None = None) -> int:
        """Make a delivery, or all of a job's, again now: same body, same ``webhook-id``. The number of deliveries.

        Raises JobNotFound, DeliveryNotFound, ContentDeleted.
        """
        if delivery_id is None:
            path = f"{_path(job_id)}/redeliver"
        elif re.fullmatch("[A-Za-z0-9_.-]{1,64}", delivery_id):
            path = f"{_path(job_id)}/deliveries/{delivery_id}/redeliver"
        else:
            raise DeliveryNotFound
        return (await self._http.read(Redelivering, "POST", path)).count

    async def redeliver_all(
        self,
        since: datetime,
        until: datetime | None = None,
        *,
        status: Literal["pending", "delivered", "failed"] = "failed",
        url: str | None = None,
    ) -> Redelivering:
        """Make the deliveries of events between two times again, up to 10,000 in a call.

        Times are aware; ``until`` None is now. Raises InvalidRequest.
        """
        body = Redelivery(since=since, until=until, status=status, url=url).model_dump_json().encode()
        return await self._http.read(Redelivering, "POST", "/api/redeliveries", body=body)

    async def test_webhook(self, url: str) -> WebhookTest:
        """Send a signed ``webhook.test`` from the service to a URL. Raises WebhookUrlRefused."""
        body = canonical_json({"url": url})
        return await self._http.read(WebhookTest, "POST", "/api/webhooks/test", body=body)

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """The health of deliveries per URL: the disabled ones first, then those that fail."""
        return (await self._http.read(EndpointList, "GET", "/api/endpoints")).endpoints

    async def enable_endpoint(self, url: str) -> Endpoint:
        """Enable deliveries to a disabled URL again. Raises EndpointNotFound."""
        body = canonical_json({"url": url})
        return await self._http.read(Endpoint, "POST", "/api/endpoints/enable", body=body)

    async def add_endpoint(self, url: str, events: Sequence[str] | None = None, secret: str | None = None) -> Endpoint:
        """Have the webhooks of all jobs and batches sent to a URL, too; ``events`` None is all of them.

        The same URL again changes what is given. ``secret`` signs in place of the tenant's; the one before signs beside
        it for 24 hours. Raises InvalidRequest, WebhookUrlRefused, TooManyEndpoints.
        """
        return await feed.add_endpoint(self._http, url, events, secret)

    async def delete_endpoint(self, url: str) -> None:
        """Send the webhooks of all jobs to this URL no longer. Raises EndpointNotFound, also for a second call."""
        await feed.delete_endpoint(self._http, url)

    def listen(
        self,
        after: str | int | None = None,
        *,
        types: Sequence[FeedEventType | str] | None = None,
        timeout: float = math.inf,
    ) -> Stream[FeedEvent]:
        """What happens to all jobs from now on, or after the event with the id ``after`` (0: from the oldest one that
        is kept): created, started, ended. ``types``: only these.

        Store an event's ``id`` once it is processed, and give it to go on in another process: within 30 days nothing is
        missed and nothing comes twice. A broken connection is opened again. ``timeout`` is in seconds, for the whole
        stream. Raises StreamBroken if ``after`` is not an id, ValueError for an unknown type; iterating raises
        EventsExpired, ServiceUnavailable, TimeoutError, StreamBroken and ResponseTooLarge.
        """
        bounds = {"patience": self._patience, "silence": self._silence, "timeout": timeout}
        return feed.listen(self._http, after, types, limit=self._max_event_bytes, **bounds)

    async def lanes(self) -> tuple[Lane, ...]:
        """The lanes by name: their limits, and who uses them; with an API key, as far as its tenant does."""
        return (await self._http.read(LaneList, "GET", "/api/lanes")).lanes

    async def pause(self, *, lane: str | None = None, tenant: str | None = None, reason: str = "") -> Pause:
        """Begin a pause of a lane, of a tenant, or of everything: no call of the model starts until it ends.

        With an API key, ``tenant`` must be the key's own (ApiError ``operators_only``). Raises InvalidRequest.
        """
        body = PauseRequest(lane=lane, tenant=tenant, reason=reason).model_dump_json(exclude_none=True).encode()
        return await self._http.read(Pause, "POST", "/api/pauses", body=body)

    async def pauses(self) -> tuple[Pause, ...]:
        """The pauses that concern the caller's jobs, oldest first."""
        return (await self._http.read(PauseList, "GET", "/api/pauses")).pauses

    async def end_pause(self, pause_id: str) -> None:
        """End a pause: the jobs that waited for its end start, at their lane's pace. Raises PauseNotFound."""
        if not re.fullmatch("[A-Za-z0-9_-]{1,64}", pause_id):
            raise PauseNotFound
        await self._http.call("DELETE", f"/api/pauses/{pause_id}")

    async def list(
        self,
        *,
        status: JobStatus | str | None = None,
        model: str | None = None,
        schedule: str | None = None,
        metadata: Mapping[str, str] | None = None,
        search: str | None = None,
        error_code: str | None = None,
        replay_of: str | None = None,
        thread: str | None = None,
        batch_id: str | None = None,
        schedule_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Job]:
        """Jobs without their texts, newest first, read in pages of ``page_size``. Times are aware.

        ``search``: words of prompt or answer, all of which have to be there. ``error_code`` is that of a failed job,
        ``replay_of`` the id of the job that was replayed, ``thread`` that of the first job of a conversation. Raises
        InvalidRequest, and ValueError for an unknown ``status``.
        """
        filters = {
            "status": JobStatus(status).value if status is not None else None,
            "model": model,
            "q": search,
            "errorCode": error_code,
            "replayOf": replay_of,
            "thread": thread,
            "batchId": batch_id,
            "scheduleId": schedule_id,
            "since": rfc3339(since) if since is not None else None,
            "until": rfc3339(until) if until is not None else None,
            "limit": str(page_size),
            **{f"metadata.{key}": value for key, value in (metadata or {}).items()},
        }
        params = {name: value for name, value in filters.items() if value is not None}
        seen: set[str] = set()
        while True:
            page = await self._http.read(JobPage, "GET", "/api/jobs", params=params)
            for job in page.jobs:
                yield job
            if page.next_cursor is None:
                return
            if page.next_cursor in seen:
                raise ApiError("the pages of the list go round in circles")
            seen.add(page.next_cursor)
            params["cursor"] = page.next_cursor

    async def map(
        self,
        /,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        concurrency: int = 10,
        on_progress: Callable[[Progress], object] | None = None,
        idempotency_prefix: str | None = None,
        timeout: float = DAY,
        **fields: Any,
    ) -> AsyncIterator[Outcome]:
        """A job for each of many prompts, ``concurrency`` at a time; outcomes come in the order of the prompts.

        An error is the outcome of its prompt and does not affect the others. About ten times ``concurrency`` prompts
        are in memory, whatever their number. ``fields`` are those of every job. With an ``idempotency_prefix`` a script
        that is run again gets the jobs of its first run (prompt number n has the key ``<prefix>-<n>``). ``timeout``:
        seconds for one prompt, after which its outcome is an error, while the job continues. Jobs that were started
        continue where the loop is left early (asynchronously: with ``contextlib.aclosing``). An ``on_progress`` may be
        a coroutine function for AsyncChatJobs; for ChatJobs it is called, and ``prompts`` are iterated over, in the
        thread that takes the outcomes, while that waits for the next one.
        Raises TypeError for a single prompt, ValueError for a ``concurrency`` out of range.
        """
        if isinstance(prompts, (str, ChatRequest)):
            raise TypeError("prompts are several: put a single one in a list")
        if not 1 <= concurrency <= CONNECTIONS:
            raise ValueError(f"concurrency must lie between 1 and {CONNECTIONS}")
        ask = partial(self.ask, timeout=timeout, **fields)
        mapping = _Mapping(ask, prompts, concurrency, on_progress, idempotency_prefix)
        async with contextlib.aclosing(mapping.outcomes()) as outcomes:
            async for outcome in outcomes:
                yield outcome


class ChatJobs(Twin):
    """A synchronous client of the service at ``base_url``. Use it as ``with``, or close it with ``close``. Threads may
    share it; after a fork the child goes on with connections of its own. Parameters are those of AsyncChatJobs.

    The class had that one's methods once. So ``async with ChatJobs(…)`` gives an AsyncChatJobs, and one that was not
    entered at all is asynchronous where an event loop runs; after ``with`` it is synchronous everywhere.
    """

    @constructor(AsyncChatJobs.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bridge = Bridge(partial(AsyncChatJobs, *args, **kwargs))
        super().__init__(bridge, lambda client: client)
        self.schedules = SyncSchedules(bridge, lambda client: client.schedules)
        """Calls for schedules."""
        self.batches = SyncBatchCalls(bridge, lambda client: client.batches)
        """The calls on batches."""

    def __enter__(self) -> Self:
        self._bridge.synchronous = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncChatJobs:
        client: AsyncChatJobs = self._bridge.in_loop()
        return client

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def close(self) -> None:
        """Close all connections, and end the calls of other threads. Jobs continue."""
        self._bridge.close()

    async def aclose(self) -> None:
        """Close all connections, in code that uses the client asynchronously. Jobs continue."""
        await self._bridge.aclose()

    submit = call(AsyncChatJobs.submit)
    get = call(AsyncChatJobs.get)
    wait = call(AsyncChatJobs.wait)
    listen = stream(AsyncChatJobs.listen)
    stream = stream(AsyncChatJobs.stream)  # the last: it hides the function
    answer = call(AsyncChatJobs.answer)
    ask = call(AsyncChatJobs.ask)
    cancel = call(AsyncChatJobs.cancel)
    delete = call(AsyncChatJobs.delete)
    reply = call(AsyncChatJobs.reply)
    replay = call(AsyncChatJobs.replay)
    replay_all = call(AsyncChatJobs.replay_all)
    estimate_replay = call(AsyncChatJobs.estimate_replay)
    resume = call(AsyncChatJobs.resume)
    deliveries = call(AsyncChatJobs.deliveries)
    redeliver = call(AsyncChatJobs.redeliver)
    redeliver_all = call(AsyncChatJobs.redeliver_all)
    test_webhook = call(AsyncChatJobs.test_webhook)
    endpoints = call(AsyncChatJobs.endpoints)
    enable_endpoint = call(AsyncChatJobs.enable_endpoint)
    add_endpoint = call(AsyncChatJobs.add_endpoint)
    delete_endpoint = call(AsyncChatJobs.delete_endpoint)
    lanes = call(AsyncChatJobs.lanes)
    pause = call(AsyncChatJobs.pause)
    pauses = call(AsyncChatJobs.pauses)
    end_pause = call(AsyncChatJobs.end_pause)
    list = items(AsyncChatJobs.list)
    map = items(AsyncChatJobs.map, lends=("prompts", "on_progress"))


def _checked(text: str, expected: str) -> str:
    """The text, if it is the one that the service has stored. Raises StreamBroken if not."""
    if hashlib.sha256(text.encode()).hexdigest() != expected:
        raise StreamBroken("the text is not the one that was stored; read the job")
    return text


def _path(job_id: str) -> str:
    """The path of a job. Raises JobNotFound for a text that cannot be an id of a job."""
    if not re.fullmatch(JOB_ID, job_id):
        raise JobNotFound
    return f"/api/jobs/{job_id}"


def _new_key() -> str:
    return uuid.uuid4().hex


# --------------------------------------------------------------------------------------------------- map


class _Mapping:
    """One run of ``AsyncChatJobs.map``: a feeder starts tasks, whose outcomes are yielded in order."""

    def __init__(
        self,
        ask: Callable[..., Awaitable[Job]],
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        concurrency: int,
        on_progress: Callable[[Progress], object] | None,
        idempotency_prefix: str | None,
    ) -> None:
        self._ask = ask
        self._prompts = prompts
        self._on_progress = on_progress
        self._prefix = idempotency_prefix
        self._running = asyncio.Semaphore(concurrency)
        # A slow job delays the outcomes after it, but not their jobs, as long as so many fit.
        self._kept = asyncio.Semaphore(10 * concurrency)
        self._tasks: asyncio.Queue[asyncio.Task[Outcome] | None] = asyncio.Queue()
        self._total = len(prompts) if isinstance(prompts, Sized) else None
        self._done = self._failed = 0

    async def outcomes(self) -> AsyncGenerator[Outcome]:
        """The outcomes in the order of the prompts. Raises what iterating over the prompts raises."""
        feeder = asyncio.create_task(self._feed(), name="map-feeder")
        current: asyncio.Task[Outcome] | None = None
        try:
            while (current := await self._tasks.get()) is not None:
                yield await current
                self._kept.release()
            await feeder  # raises what the prompts raised
        finally:
            left = [current, *(self._tasks.get_nowait() for _ in range(self._tasks.qsize()))]
            await _ended([feeder, *(task for task in left if task is not None)])

    async def _feed(self) -> None:
        try:
            index = 0
            async for prompt in each(self._prompts):
                await self._kept.acquire()
                await self._running.acquire()
                self._tasks.put_nowait(asyncio.create_task(self._run(index, prompt), name=f"map-{index}"))
                index += 1
        finally:
            self._tasks.put_nowait(None)

    async def _run(self, index: int, prompt: Prompt) -> Outcome:
        try:
            outcome = await self._outcome(index, prompt)
        finally:
            self._running.release()
        self._done += 1
        self._failed += outcome.error is not None
        if self._on_progress is not None:
            returned = self._on_progress(Progress(self._done, self._failed, self._total))
            if inspect.isawaitable(returned):
                await returned
        return outcome

    async def _outcome(self, index: int, prompt: Prompt) -> Outcome:
        key = None if self._prefix is None else f"{self._prefix}-{index}"
        try:
            job = await self._ask(prompt, idempotency_key=key)
        except ChatJobsError as error:
            return Outcome(index, None, error)
        except TimeoutError:
            return Outcome(index, None, ServiceUnavailable("the job did not end in time", reason="timeout"))
        return Outcome(index, job, unsuccessful(job))


def unsuccessful(job: Job) -> JobFailed | None:
    """The exception that says why a job that has ended has no answer; None if it has one."""
    if job.status in (JobStatus.COMPLETED, JobStatus.INCOMPLETE):
        return None
    if job.error is None:
        return JobFailed(f"The job was {job.status.value}", reason=job.status.value)
    return failed(job.error)


def failed(error: JobError | ErrorEvent) -> JobFailed:
    """The exception for a job's error."""
    cause = error.cause.code if error.cause else None
    return JobFailed(error.message, reason=error.code, retryable=error.retryable, cause=cause)


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and wait until they have stopped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
