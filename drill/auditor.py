"""The auditor: checks jobs by the raw tables, the simulator's log, the receiver's log and the readers' logs.

It imports nothing of the service and does not rely on what the service reports of itself.

I1 every accepted job reaches exactly one terminal state, in time
I2 one result, whose bytes never change
I3 every subscribed event is accepted at least once, or its delivery is due; all tries have one id and one body
I4 a reader's ids strictly increase, and its text since the last reset is the stored one, which is the model's
I5 the model is called once, and once more for each fault that hit a call; no fault excuses two calls of one job
I6 no key, secret or prompt in Temporal's history or in a log
I7 nothing crosses tenants
I8 the service recovers by itself within the stated time
I9 no process grows beyond its cap
I10 every item of a batch is in its output or in its errors, once; its end is announced once
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

from chatjobs.sse import EventId
from drill.load import CANARY, DrillBatch, DrillJob, Load
from drill.readers import ReaderLog
from drill.stack import TENANTS, DrillStack

RSS_CAP_MB = 700
"""The limit of every process's peak memory."""
STRAGGLERS_SECONDS = 90.0
"""How long the last webhooks may take after the last fault: one whose worker is gone waits for a minute."""
WHOLE = ("completed", "incomplete")
TERMINAL_FRAME = {"completed": "complete", "incomplete": "complete", "failed": "error", "cancelled": "cancelled"}
EVENT_REACH_SECONDS = 1.0
"""An event of the drill counts for a call from so long before the call's start to so long after its end."""


@dataclass
class Verdict:
    """Violations found, and figures for the report."""

    wrong: list[str] = field(default_factory=list)
    generated: int = 0
    """Tokens that the model sent for these jobs."""
    needed: int = 0
    """Tokens of their answers. Both count only jobs with a whole answer."""
    calls: int = 0
    largest_mb: float = 0
    """The highest peak memory of a process of the service."""

    @property
    def passed(self) -> bool:
        return not self.wrong


class Auditor:
    def __init__(self, stack: DrillStack, load: Load, client: httpx2.AsyncClient) -> None:
        self._stack = stack
        self._load = load
        self._client = client
        self._results: dict[str, str] = {}

    async def audit(self, jobs: Sequence[DrillJob], *, within: float, since: float) -> Verdict:
        """Check the jobs of one fault. ``since`` is when the fault ended, ``within`` how long recovery may take."""
        verdict = Verdict()
        tables = await self._tables([job.id for job in jobs])
        calls = await self._calls()
        for job in jobs:
            found = [f"{job.id}: {wrong}" for wrong in await self._job(job, tables, calls, verdict)]
            late = (job.settled or float("inf")) - max(since, job.accepted)
            if job.settled is not None and late > within:
                found.append(f"{job.id}: I8 ended {late:.1f} s after the fault; {within:g} s are allowed")
            verdict.wrong += found
        verdict.wrong += self._sizes(verdict)
        return verdict

    async def _job(
        self, job: DrillJob, tables: Tables, calls: dict[str, list[dict[str, Any]]], verdict: Verdict
    ) -> list[str]:
        row, result = tables.jobs.get(job.id), tables.results.get(job.id)
        if row is None:
            return ["I1 it was accepted, and there is no such row"]
        if row["completed_at"] is None or result is None:
            return [f"I1 it has not ended: {row['status']}"]
        wrong = []
        if row["status"] not in job.expects:
            wrong.append(f"I1 it ended as {row['status']} ({row['error_code']}), expected {' or '.join(job.expects)}")
        wrong += self._unchanged(job, result)
        if job.others:
            wrong.append(f"I1 one Idempotency-Key made {1 + len(job.others)} jobs")
        answer, content, whole = await self._answer(job), result["content"], row["status"] in WHOLE
        if content != answer["text"] if whole else not answer["text"].startswith(content):
            wrong.append(f"I4 the stored text is not the model's: {_difference(content, answer['text'])}")
        for log in job.logs:
            wrong += _reader(log, content, row["status"])
        wrong += self._deliveries(job, row, tables)
        made = calls.get(job.body["messages"][-1]["content"], [])
        wrong += self._called(job, made, row["status"])
        verdict.calls += len(made)
        verdict.generated += sum(call["tokens_sent"] for call in made) if whole else 0
        verdict.needed += len(answer["tokens"]) if whole else 0
        return wrong

    def audit_batch(self, batch: DrillBatch) -> list[str]:
        """Check a batch as a whole; its items are jobs, which ``audit`` checks."""
        wrong = []
        if batch.status not in batch.expects:
            wrong.append(f"I10 it is {batch.status or 'still running'}, expected {' or '.join(batch.expects)}")
        twice = {name for name in batch.listed if batch.listed.count(name) > 1}
        missing = set(batch.items) - set(batch.listed)
        wrong += [f"I10 {len(twice)} items are listed twice: {sorted(twice)[:5]}"] * bool(twice)
        wrong += [f"I10 {len(missing)} items are not listed: {sorted(missing)[:5]}"] * bool(missing)
        return [f"{batch.id}: {found}" for found in [*wrong, *self._announced(batch)]]

    def _announced(self, batch: DrillBatch) -> Iterator[str]:
        posts = [post for post in self._load.receiver.log if post.path == batch.path]
        if len({(post.headers.get("webhook-id"), post.body) for post in posts}) > 1:
            yield "I10 the tries of its webhook differ in id or body"
        for post in posts:
            if not self._signed(post.headers, post.body, batch.tenant):
                yield "I10 a try of its webhook is not signed with the tenant's secret"
            if json.loads(post.body)["event"] != f"batch.{batch.status}":
                yield "I10 its webhook tells another outcome"

    def _unchanged(self, job: DrillJob, result: dict[str, Any]) -> Iterator[str]:
        digest = hashlib.sha256(result["content"].encode()).hexdigest()
        if digest != result["sha256"]:
            yield "I2 the stored digest is not that of the stored text"
        if self._results.setdefault(job.id, digest) != digest:
            yield "I2 the result has changed since it was stored"

    def _deliveries(self, job: DrillJob, row: dict[str, Any], tables: Tables) -> Iterator[str]:
        if job.path is None:
            return
        posts = [post for post in self._load.receiver.log if post.path == job.path]
        owned = tables.deliveries.get(job.id, [])
        if not owned:
            yield "I3 its webhook has no delivery"
        seen = any(post.status == 200 for post in posts)
        if not seen and not any(one["status"] == "failed" or one["next_try_at"] for one in owned):
            yield "I3 its webhook was never accepted, and nothing says that it will be tried again"
        if any(one["status"] == "delivered" for one in owned) and not seen:
            yield "I3 its delivery is called delivered, and the receiver never accepted one"
        if len({(post.headers.get("webhook-id"), post.body) for post in posts}) > 1:
            yield "I3 the tries differ in id or body"
        stamps = [int(post.headers["webhook-timestamp"]) for post in posts]
        if stamps != sorted(stamps):
            yield "I3 the timestamps of the tries do not grow"
        for post in posts:
            if not self._signed(post.headers, post.body, job.tenant):
                yield "I3 a try is not signed with the tenant's secret"
            if json.loads(post.body)["data"]["status"] != row["status"]:
                yield "I3 a try tells another outcome than the table"

    def _signed(self, headers: dict[str, str], body: bytes, tenant: str) -> bool:
        """Verified without the service's code, by the specification: https://github.com/standard-webhooks/standard-webhooks."""
        key = base64.b64decode(self._stack.secrets[tenant].removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        right = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return right in headers["webhook-signature"].split()

    def _called(self, job: DrillJob, calls: list[dict[str, Any]], status: str) -> Iterator[str]:
        """Each call but one must have been hit by a scripted fault or by an event of the drill."""
        hits = job.scripted + self._hits(calls)
        if len(calls) > 1 + hits:
            outcomes = ", ".join(f"{call['outcome']} after {call['tokens_sent']}" for call in calls)
            yield f"I5 {len(calls)} calls of the model, and {hits} of them were hit: {outcomes}"
        if not calls and status == "completed":
            yield "I5 it completed without a call of the model"

    def _hits(self, calls: list[dict[str, Any]]) -> int:
        """The number of a job's calls that were each hit by a different event."""
        events = sorted(event.at for event in self._stack.events if event.cuts)
        hits = 0
        for call in sorted(calls, key=lambda call: float(call["time"])):
            first, last = call["time"] - EVENT_REACH_SECONDS, (call["ended"] or float("inf")) + EVENT_REACH_SECONDS
            hit = next((at for at in events if first <= at <= last), None)
            if hit is not None:
                events = [at for at in events if at > hit]
                hits += 1
        return hits

    def _sizes(self, verdict: Verdict) -> Iterator[str]:
        for process in self._stack.processes:
            if process.running:
                status = Path(f"/proc/{process.pid}/status").read_text()
                size = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
                verdict.largest_mb = max(verdict.largest_mb, size)
                if size > RSS_CAP_MB:
                    yield f"I9 {process.name} had {size:.0f} MB; the cap is {RSS_CAP_MB} MB"

    # ---------------------------------------------------------------------------------- checks of the whole drill

    async def final(self) -> list[str]:
        """Violations over all jobs of the drill."""
        missing = await self._undelivered()
        again = await self._tables([job.id for job in self._load.jobs])
        changed = [
            f"{job.id}: {wrong}"
            for job in self._load.jobs
            if job.id in again.results
            for wrong in self._unchanged(job, again.results[job.id])
        ]
        return [*missing, *changed, *self._leaks(), *await self._tenant_crossings()]

    async def _undelivered(self) -> list[str]:
        """Webhooks that were never accepted, though every receiver works by now."""
        hooks, deadline = self._load.receiver.log, time.monotonic() + STRAGGLERS_SECONDS
        while True:
            accepted = {post.path for post in hooks if post.status == 200}
            owners: list[DrillJob | DrillBatch] = [*self._load.jobs, *self._load.batches]
            missing = [one for one in owners if one.path is not None and one.path not in accepted]
            if not missing or time.monotonic() > deadline:
                return [f"{one.id}: I3 its webhook was never accepted, to the end of the drill" for one in missing]
            await asyncio.sleep(0.2)

    def _leaks(self) -> Iterator[str]:
        """Secrets in Temporal's database, which has the histories, and in the logs of the service's processes."""
        secrets = {"the model's key": self._stack.api_key, "a prompt": f"{CANARY}-"}
        secrets |= {f"the secret of {tenant}": secret for tenant, secret in self._stack.secrets.items()}
        secrets |= {f"the key of {tenant}": key for tenant, key in self._stack.keys.items()}
        histories = list(self._stack.directory.glob("temporal.db*"))
        known = [job.id for job in self._load.jobs[-20:]] + [batch.id for batch in self._load.batches]
        if not any(one.encode() in content for content in (file.read_bytes() for file in histories) for one in known):
            yield "I6 cannot be judged: not even ids are found in Temporal's database"
        for file in [*histories, *(process.log for process in self._stack.service)]:
            content = file.read_bytes()
            for what, secret in secrets.items():
                if secret.encode() in content:
                    yield f"I6 {what} stands in {file.name}"

    async def _tenant_crossings(self) -> list[str]:
        """Requests of each tenant for the other's jobs, by every route, that were not answered with 404."""
        wrong = []
        for job in self._load.jobs[:: max(1, len(self._load.jobs) // 20)]:
            other = next(tenant for tenant in TENANTS if tenant != job.tenant)
            headers = {"authorization": f"Bearer {self._stack.keys[other]}"}
            for method, rest in (
                ("GET", ""),
                ("GET", "/events"),
                ("GET", "/deliveries"),
                ("POST", "/cancel"),
                ("DELETE", ""),
            ):
                url = f"{self._stack.gateway_urls[0]}/api/jobs/{job.id}{rest}"
                response = await self._client.request(method, url, headers=headers)
                if response.status_code != 404:
                    wrong.append(
                        f"I7 {other} got {response.status_code} for {method} {rest or 'the job'} of {job.tenant}"
                    )
        return wrong

    # ---------------------------------------------------------------------------------------------------- sources

    async def _calls(self) -> dict[str, list[dict[str, Any]]]:
        """The simulator's log by prompt."""
        found: dict[str, list[dict[str, Any]]] = {}
        for entry in (await self._client.get(f"{self._stack.simulator_url}/sim/requests")).json():
            found.setdefault(entry["prompt"], []).append(entry)
        return found

    async def _answer(self, job: DrillJob) -> dict[str, Any]:
        body = {"model": job.body.get("model", "mistral-small-latest"), "messages": job.body["messages"]}
        body |= {name: job.body[name] for name in ("max_tokens",) if name in job.body}
        response = await self._client.post(f"{self._stack.simulator_url}/sim/answer", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def _tables(self, ids: Sequence[str]) -> Tables:
        if self._stack.database.startswith("sqlite"):
            return Tables(*self._from_sqlite(set(ids)))
        return Tables(*await self._from_postgres(list(ids)))

    def _from_sqlite(self, ids: set[str]) -> Iterator[list[dict[str, Any]]]:
        path = self._stack.database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            for query in QUERIES:
                rows = [dict(row) for row in connection.execute(query)]
                yield [row for row in rows if row["job"] in ids]

    async def _from_postgres(self, ids: list[str]) -> list[list[dict[str, Any]]]:
        import asyncpg  # type: ignore[import-untyped]  # the package has no type hints

        connection = await asyncpg.connect(self._stack.database)
        try:
            return [
                [dict(row) for row in await connection.fetch(f"SELECT * FROM ({query}) q WHERE job = ANY($1)", ids)]  # noqa: S608
                for query in QUERIES
            ]
        finally:
            await connection.close()


QUERIES = (
    "SELECT id AS job, status, completed_at, error_code, epoch, position FROM jobs",
    "SELECT job_id AS job, content, sha256 FROM results",
    "SELECT job_id AS job, id, status, next_try_at FROM deliveries",
)


class Tables:
    def __init__(
        self, jobs: list[dict[str, Any]], results: list[dict[str, Any]], deliveries: list[dict[str, Any]]
    ) -> None:
        self.jobs = {row["job"]: row for row in jobs}
        self.results = {row["job"]: row for row in results}
        self.deliveries: dict[str, list[dict[str, Any]]] = {}
        for row in deliveries:
            self.deliveries.setdefault(row["job"], []).append(row)


def _reader(log: ReaderLog, content: str, status: str) -> Iterator[str]:
    """Violations in what one reader of a job received."""
    ids = [EventId.parse(frame.id) for frame in log.frames if frame.id is not None]
    if any(later <= earlier for earlier, later in pairwise(ids)):
        yield "I4 a reader saw ids that do not grow"
    text = ""
    for frame in log.frames:
        if frame.event == "reset":
            text = ""
        elif frame.event == "chunk" and frame.data["channel"] == "content":
            text += frame.data["content"]
    if log.refused:
        yield f"I4 a reader was answered with {sorted(log.refused)}"
    if not log.ended:
        yield f"I4 a reader never saw the end; it has {len(text)} characters after {log.connections} connections"
    elif text != content:
        yield f"I4 a reader has another text than the table: {_difference(text, content)}"
    ends = [frame.event for frame in log.frames if frame.event in TERMINAL_FRAME.values()]
    if log.ended and ends != [TERMINAL_FRAME[status]]:
        yield f"I1 a reader saw the ends {ends} of a job that is {status}"


def _difference(one: str, other: str) -> str:
    """The position of the first difference, without the text: answers are private."""
    where = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{len(one)} and {len(other)} characters, different from character {where} on"
