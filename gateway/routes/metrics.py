"""Metrics of this process, for Prometheus. Labels have few values: no tenant, no id, no path that a caller wrote."""

from __future__ import annotations

import asyncio
import logging
import time

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from domain.errors import StorageError
from gateway.dependencies import Dependencies, identity, parts
from storage.jobs.counts import JobCounts, counts

log = logging.getLogger(__name__)

FRESH_SECONDS = 5.0
LAG_SECONDS = 0.5
"""How often the event loop is asked whether it is punctual."""
HTTP_LAYER = "(http)"
"""The route label of requests that were refused before routing."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

router = APIRouter()


class Metrics:
    """The counters and gauges; the middleware calls ``observed`` for every request."""

    def __init__(self, here: Dependencies | None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "chatjobs_http_requests",
            "Requests that were answered",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "chatjobs_http_request_seconds",
            "From the head of a request to the end of its answer, but for streams",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._accepted = Counter("chatjobs_jobs_accepted", "Jobs that were accepted here", registry=self.registry)
        self._storage_errors = Counter(
            "chatjobs_storage_errors", "Requests that the database failed", ["code"], registry=self.registry
        )
        self._lag = Gauge(
            "chatjobs_event_loop_lag_seconds",
            "How late the event loop was, at worst, since the last look",
            registry=self.registry,
        )
        self._open_jobs = Gauge(
            "chatjobs_open_jobs", "Jobs of the whole service that have not ended", ["status"], registry=self.registry
        )
        self._ended_jobs = Gauge(
            "chatjobs_jobs_ended_last_5_minutes", "Jobs of the whole service", ["status"], registry=self.registry
        )
        self._oldest = Gauge(
            "chatjobs_oldest_queued_job_seconds",
            "How long the job waits that waits longest, but for items of batches",
            registry=self.registry,
        )
        self._lanes_down = Gauge(
            "chatjobs_lanes_down", "Rate limits whose model fails every call: their jobs wait", registry=self.registry
        )
        streams = Gauge("chatjobs_open_streams", "Event streams that are being read", registry=self.registry)
        waiting = Gauge("chatjobs_errands_waiting", "Jobs to be started, cancels to be sent", registry=self.registry)
        if here is not None:
            streams.set_function(lambda: len(here.open_streams))
            waiting.set_function(lambda: len(here.after_response))
        self._worst_lag = 0.0
        self._looked = float("-inf")

    def observed(self, route: str, method: str, status: int, seconds: float, *, stream: bool) -> None:
        self._requests.labels(route, method, str(status)).inc()
        if not stream:
            self._seconds.labels(route).observe(seconds)

    def refused(self, status: int) -> None:
        """Count a request that the HTTP layer answered."""
        self._requests.labels(HTTP_LAYER, "", str(status)).inc()

    def accepted(self) -> None:
        self._accepted.inc()

    def storage_failed(self, error: StorageError) -> None:
        self._storage_errors.labels(error.code).inc()

    async def watch_the_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._worst_lag = max(self._worst_lag, loop.time() - due)

    async def text(self, here: Dependencies) -> bytes:
        """All metrics in Prometheus' format; without those read from the database if it is unavailable."""
        self._lag.set(self._worst_lag)
        self._worst_lag = 0.0
        if time.monotonic() > self._looked + FRESH_SECONDS:
            self._looked = time.monotonic()
            try:
                self._set_job_gauges(await counts(here.database))
            except StorageError as error:
                self.storage_failed(error)
                log.warning("no figures: %s", error, extra={"action": "metrics_incomplete"})
        return generate_latest(self.registry)

    def _set_job_gauges(self, found: JobCounts) -> None:
        for status, count in found.open.items():
            self._open_jobs.labels(status.value).set(count)
        for status, count in found.ended.items():
            self._ended_jobs.labels(status.value).set(count)
        self._oldest.set(found.oldest_queued_seconds)
        self._lanes_down.set(found.lanes_down)


@router.get("/metrics", dependencies=[Depends(identity)], response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format. Requires a key if keys are configured."""
    collected: Metrics = request.app.state.metrics
    return Response(await collected.text(parts(request)), headers={"Content-Type": CONTENT_TYPE_LATEST})
