"""The drill's jobs, started over HTTP as by any caller, with retries under one key and live readers."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx2

from drill.readers import ReaderLog, StreamReader
from drill.receiver import Receiver
from drill.stack import TENANTS, DrillStack

CANARY = "canary"
TERMINAL = ("completed", "failed", "cancelled", "incomplete")
ACCEPT_SECONDS = 60
POLL_SECONDS = 0.2


@dataclass
class DrillJob:
    """An accepted job, and what the drill expects of it."""

    id: str
    tenant: str
    body: dict[str, Any]
    path: str | None
    expects: tuple[str, ...]
    scripted: int
    """The number of model faults in its script."""
    accepted: float
    accept_seconds: float
    logs: list[ReaderLog] = field(default_factory=list)
    settled: float | None = None
    others: set[str] = field(default_factory=set)
    """Other ids that were returned for the same Idempotency-Key."""


@dataclass
class DrillBatch:
    """An accepted batch, and what the drill expects of it. ``items``: the jobs by custom_id, still without ids."""

    id: str
    tenant: str
    items: dict[str, DrillJob]
    path: str
    expects: tuple[str, ...]
    listed: list[str] = field(default_factory=list)
    """The custom_ids of the lines of its output and of its errors, at the end."""
    status: str | None = None
    """The terminal one."""


@dataclass(frozen=True)
class Order:
    """The jobs of a fault. ``faults`` is the simulator's script, one entry per call of a job.

    ``rule``: words in the prompt that match a script set in the simulator beforehand; the jobs then have no script.
    ``copies``: the number of callers that send each job at the same time, with one key, to all gateways.
    """

    jobs: int = 10
    tokens: int = 60
    rate: float = 60
    faults: Sequence[dict[str, Any]] = ()
    script: dict[str, Any] = field(default_factory=dict)
    rule: str = ""
    webhook: bool = True
    readers: int = 1
    cut_after: int = 0
    pause_seconds: float = 0
    copies: int = 1
    expects: tuple[str, ...] = ("completed",)
    fields: dict[str, Any] = field(default_factory=dict)
    patience: float = ACCEPT_SECONDS


class Load:
    def __init__(self, stack: DrillStack, receiver: Receiver, client: httpx2.AsyncClient, seed: int) -> None:
        self.stack = stack
        self.receiver = receiver
        self.client = client
        self.jobs: list[DrillJob] = []
        self.batches: list[DrillBatch] = []
        self.random = Random(seed)  # noqa: S311 - a drill is repeatable
        self._numbers = itertools.count(1)
        self._reading: set[asyncio.Task[None]] = set()

    async def submit(self, order: Order) -> list[DrillJob]:
        """Start jobs, all at once, and their readers."""
        return list(await asyncio.gather(*(self._start(order) for _ in range(order.jobs))))

    async def submit_batch(self, order: Order, **settings: Any) -> DrillBatch:
        """Start a batch of jobs, which have no readers. ``order.expects``: of its jobs."""
        number = next(self._numbers)
        tenant, path = TENANTS[number % len(TENANTS)], f"/hook/{number}"
        items = {}
        for nth in range(order.jobs):
            hook = f"{path}/{nth}" if order.webhook else None
            body = self._body(f"{number}-{nth}", order, hook)
            items[f"item-{nth}"] = DrillJob("", tenant, body, hook, order.expects, len(order.faults), 0, 0)
        lines = [{"custom_id": name, "body": item.body} for name, item in items.items()]
        sent = {"items": lines, "webhook": {"url": self.receiver.url(path)}, **settings}
        began, key = time.time(), secrets.token_hex(16)
        answer = await self._posted("batches", sent, tenant, key, _rotated(self.stack.gateway_urls, 0), order.patience)
        for item in items.values():
            item.accepted, item.accept_seconds = time.time(), time.time() - began
        batch = DrillBatch(answer["batchId"], tenant, items, path, ("completed", "cancelled"))
        self.batches.append(batch)
        return batch

    async def wish(self, batch: DrillBatch, action: str) -> None:
        """Pause, resume or cancel a batch, at a gateway that answers."""
        for url in self.stack.gateway_urls:
            with suppress(httpx2.TransportError):
                answer = await self.client.post(f"{url}/api/batches/{batch.id}/{action}", headers=self._key(batch))
                assert answer.status_code == 202, f"{action}: {answer.status_code} {answer.text[:300]}"
                return
        raise AssertionError(f"no gateway took the {action}")

    async def working(self, batch: DrillBatch, ended: int, *, timeout: float = 60) -> None:
        """Wait until so many items of a batch have ended."""
        async with asyncio.timeout(timeout):
            while await self._ended(batch) < ended:  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(POLL_SECONDS)

    async def batch_settled(self, batch: DrillBatch, timeout: float) -> None:
        """Wait until a batch has ended, and make its items jobs of the load. One that has not is left to the
        auditor."""
        with suppress(TimeoutError):
            await self.working(batch, len(batch.items), timeout=timeout)
            async with asyncio.timeout(30):
                while batch.status is None:
                    shown = await self._get(f"/api/batches/{batch.id}", batch)
                    batch.status = shown.json()["status"] if shown and shown.json()["completedAt"] else None
                    await asyncio.sleep(POLL_SECONDS)
        if batch.listed:
            return
        for file in ("output", "errors"):
            found = await self._get(f"/api/batches/{batch.id}/{file}", batch)
            for line in map(json.loads, found.text.splitlines() if found else ()):
                batch.listed.append(line["custom_id"])
                item = batch.items[line["custom_id"]]
                item.id, item.settled = line["id"], item.settled or time.time()
        self.jobs += [item for item in batch.items.values() if item.id]

    async def _ended(self, batch: DrillBatch) -> int:
        shown = await self._get(f"/api/batches/{batch.id}", batch)
        counts = shown.json()["counts"] if shown else {}
        return sum(counts.get(name, 0) for name in ("completed", "failed", "cancelled"))

    async def _get(self, path: str, of: DrillBatch) -> httpx2.Response | None:
        for url in self.stack.gateway_urls:
            with suppress(httpx2.TransportError):
                response = await self.client.get(f"{url}{path}", headers=self._key(of))
                if response.status_code == 200:
                    return response
        return None

    def _key(self, of: DrillBatch) -> dict[str, str]:
        return {"authorization": f"Bearer {self.stack.keys[of.tenant]}"}

    async def _start(self, order: Order) -> DrillJob:
        number = next(self._numbers)
        tenant = TENANTS[number % len(TENANTS)]
        path = f"/hook/{number}" if order.webhook else None
        body = self._body(number, order, path)
        began = time.time()
        key, urls = secrets.token_hex(16), self.stack.gateway_urls
        job_id, *others = await asyncio.gather(
            *(self._posted_job(body, tenant, key, _rotated(urls, nth), order.patience) for nth in range(order.copies))
        )
        job = DrillJob(job_id, tenant, body, path, order.expects, len(order.faults), time.time(), time.time() - began)
        job.others = set(others) - {job_id}
        self.jobs.append(job)
        for nth in range(order.readers):
            self._read(job, nth, order)
        return job

    def _body(self, number: int | str, order: Order, path: str | None) -> dict[str, Any]:
        script = {"tokens": order.tokens, "tokens_per_second": order.rate, **order.script}
        if order.faults:
            script["faults"] = list(order.faults)
        prompt = f"{CANARY}-{secrets.token_hex(8)} number {number} {order.rule or f'[[sim {json.dumps(script)}]]'}"
        body = {"messages": [{"role": "user", "content": prompt}], **order.fields}
        return body | ({"callback": self.receiver.url(path)} if path else {})

    async def _posted_job(self, body: dict[str, Any], tenant: str, key: str, urls: list[str], patience: float) -> str:
        """Send a job until a gateway accepts it. Returns the job's id."""
        return str((await self._posted("jobs", body, tenant, key, urls, patience))["jobId"])

    async def _posted(
        self, what: str, body: dict[str, Any], tenant: str, key: str, urls: list[str], patience: float
    ) -> dict[str, Any]:
        """Send a job or a batch until a gateway accepts it, to each gateway in turn with the same key."""
        headers = {"idempotency-key": key, "authorization": f"Bearer {self.stack.keys[tenant]}"}
        deadline = time.monotonic() + patience
        last = "nothing"
        for url in itertools.cycle(urls):
            with suppress(httpx2.TransportError):
                response = await self.client.post(f"{url}/api/{what}", json=body, headers=headers)
                if response.status_code == 202:
                    return dict(response.json())
                last = f"{response.status_code} {response.text[:300]}"
                assert response.status_code in (429, 502, 503), last
            assert time.monotonic() < deadline, f"no gateway took it within {patience} s; the last answer: {last}"
            await asyncio.sleep(POLL_SECONDS)
        raise AssertionError("there is no gateway")

    def _read(self, job: DrillJob, nth: int, order: Order) -> None:
        """Start a reader. Only the first reader of a job hangs up or pauses."""
        reader = StreamReader(
            _rotated(self.stack.gateway_urls, nth),
            job.id,
            key=self.stack.keys[job.tenant],
            cut_after=0 if nth else order.cut_after,
            pause_seconds=0 if nth else order.pause_seconds,
            seed=self.random.randrange(2**32),
        )
        job.logs.append(reader.log)
        task = asyncio.create_task(reader.read(self.client))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def get(self, job: DrillJob) -> dict[str, Any] | None:
        """A job as a gateway shows it; None if no gateway answers."""
        headers = {"authorization": f"Bearer {self.stack.keys[job.tenant]}"}
        for url in self.stack.gateway_urls:
            with suppress(httpx2.TransportError):
                response = await self.client.get(f"{url}/api/jobs/{job.id}", headers=headers)
                if response.status_code == 200:
                    return dict(response.json())
        return None

    async def post(self, job: DrillJob, action: str) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.stack.keys[job.tenant]}"}
        return await self.client.post(f"{self.stack.gateway_urls[0]}/api/jobs/{job.id}/{action}", headers=headers)

    async def streaming(self, jobs: Sequence[DrillJob], characters: int = 1, *, timeout: float = 30) -> None:
        """Wait until every job's answer has so many characters, or the job has ended."""
        await self._until(jobs, lambda job: job["position"] >= characters or job["status"] in TERMINAL, timeout)

    async def settled(self, jobs: Sequence[DrillJob], timeout: float) -> None:
        """Wait until every job and its readers have ended. Jobs that do not are left to the auditor."""
        with suppress(TimeoutError):
            await self._until(jobs, lambda job: job["status"] in TERMINAL, timeout)
            async with asyncio.timeout(10):
                while any(not log.ended for job in jobs for log in job.logs):  # noqa: ASYNC110 - no event to wait for
                    await asyncio.sleep(POLL_SECONDS)

    async def _until(self, jobs: Sequence[DrillJob], reached: Callable[[dict[str, Any]], bool], timeout: float) -> None:
        waiting = list(jobs)
        async with asyncio.timeout(timeout):
            while waiting:
                shown = await asyncio.gather(*(self.get(job) for job in waiting))
                for job, one in zip(waiting, shown, strict=True):
                    if one is not None and one["status"] in TERMINAL and job.settled is None:
                        job.settled = time.time()
                waiting = [job for job, one in zip(waiting, shown, strict=True) if one is None or not reached(one)]
                await asyncio.sleep(POLL_SECONDS if waiting else 0)

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        if self._reading:
            await asyncio.wait(self._reading)


def _rotated(urls: list[str], nth: int) -> list[str]:
    """The gateways, beginning with the nth."""
    return urls[nth % len(urls) :] + urls[: nth % len(urls)]
