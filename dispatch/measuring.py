"""Measurement of how the model's server continues an interrupted answer, unless the setting says it.

A server other than Mistral's own is not asked to continue until a measurement has shown that it does: it might open a
new answer, which would be glued to the old one. Results are stored per server and model, so that each is paid for once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from dispatch.server_knowledge import assumed, remembered, store
from domain.continuing import Practice
from domain.errors import StorageError
from domain.settings import Settings
from storage.continuations import ContinuationStore, MeasuredPractice
from storage.engine.database import Database

REFRESH_SECONDS = 30.0
"""How long another process's measurement may stay unknown to this one."""
AGAIN_SECONDS = 600.0
"""Until a server that did not answer is asked again."""
MOST_AT_START = 3
MOST_TRIES = 3
"""Measurements of a model that no job has requested again: a name that the server does not have is no model."""
MOST_AN_HOUR = 60
"""Models that one process measures. Names come from requests, and some servers take any name."""
MOST_KNOWN = 1_000

log = logging.getLogger(__name__)


class Learner(Protocol):
    """A model's client that learns how its server continues, and reports the models for which it is unknown."""

    def learn(self, practices: Mapping[str, Practice]) -> None: ...

    def request_measurement(self, model: str) -> None: ...

    async def models_to_measure(self, timeout: float) -> set[str]: ...


Model = TypeVar("Model", bound=Learner)
Model_contra = TypeVar("Model_contra", bound=Learner, contravariant=True)


class Measure(Protocol[Model_contra]):
    """Measures how the server of a model continues; None if it did not answer. ``pause``: seconds between calls.

    ``assumed``: the practice, of which only the formats are measured.
    """

    async def __call__(
        self, chat: Model_contra, model: str, *, pause: float, assumed: Practice | None
    ) -> Practice | None: ...


class MeasuringPace:
    """How often models are measured by one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tries = Counter[str]()
        self._failed_at: dict[str, float] = {}
        self._begun: deque[float] = deque(maxlen=MOST_AN_HOUR)

    def allows(self, model: str) -> bool:
        """Whether a model may be measured now; one that may not is requested again by the next job that needs it."""
        now = self._clock()
        failed_at = self._failed_at.get(model)
        if failed_at is not None and now < failed_at + AGAIN_SECONDS:
            return False
        return len(self._begun) < MOST_AN_HOUR or now - self._begun[0] > 3600

    def began(self) -> None:
        """Count a measurement."""
        self._begun.append(self._clock())

    def failed(self, model: str) -> bool:
        """Take note of a server that did not answer. Returns whether it is asked again without a job's request."""
        if len(self._tries) >= MOST_KNOWN:
            self._tries.clear()
            self._failed_at.clear()
        self._failed_at[model] = self._clock()
        self._tries[model] += 1
        return self._tries[model] < MOST_TRIES


async def remember(continuations: ContinuationStore, model: str, practice: Practice) -> None:
    """Store a measured practice. Raises StorageError."""
    found = MeasuredPractice(model, practice.way.value, practice.drops.value, practice.echoes, practice.formats)
    await continuations.end(found)


async def recall(settings: Settings, database: Database, model: Learner) -> None:
    """Inform ``model`` of its server's stored practices, before it takes up interrupted answers: what is known would
    otherwise pass for unproven, and the answers would start over."""
    try:
        model.learn(await remembered(store(settings, database)))
    except StorageError as error:
        log.warning("measurements not read: %s", error, extra={"action": "continuations_unknown"})


async def keep_informed(settings: Settings, database: Database, model: Model, measure: Measure[Model]) -> None:
    """Keep ``model`` informed of its server's stored practices; measure the models in use that were never measured.

    These are the models of jobs that have not ended, and those of answers that started over because their practice was
    unknown. No job waits for a measurement. If the settings or the address say how the server continues, only one thing
    is measured, once the answer of a job that is JSON was interrupted: whether it continues JSON. Results of
    `starter.py doctor --live` are learned all the same.
    """
    if settings.chatjobs_continuation == "none":
        return
    pace = MeasuringPace()
    continuations, pause = store(settings, database), 1 / settings.mistral_requests_per_second
    known, unmeasured = assumed(settings), set[str]()
    if known is None:
        with suppress(StorageError):
            unmeasured = set(await continuations.models_in_use(MOST_AT_START))
    while True:
        try:
            model.learn(await remembered(continuations))
            for name in filter(pace.allows, sorted(unmeasured)):
                await _measure(continuations, model, name, partial(measure, pause=pause, assumed=known), pace)
                model.learn(await remembered(continuations))
        except StorageError as error:
            log.warning("measurements not read or stored: %s", error, extra={"action": "continuations_unknown"})
        unmeasured = await model.models_to_measure(REFRESH_SECONDS)


async def _measure(
    continuations: ContinuationStore,
    model: Model,
    name: str,
    measure: Callable[[Model, str], Awaitable[Practice | None]],
    pace: MeasuringPace,
) -> None:
    """Measure a model unless another process has. Raises StorageError."""
    if not await continuations.begin(name):
        return
    pace.began()
    log.info("seeing whether the server continues a text", extra={"action": "continuation_probe", "model": name})
    practice = await measure(model, name)
    if practice is None:
        log.warning("the server did not answer", extra={"action": "continuation_unmeasured", "model": name})
        if pace.failed(name):
            asyncio.get_running_loop().call_later(AGAIN_SECONDS + 1, model.request_measurement, name)
        await continuations.forget(name)
        return
    await remember(continuations, name, practice)
    log.info("interrupted answers continue: %s", practice.way, extra={"action": "continuation_measured", "model": name})
