"""A store with many finished jobs, for bench/growth.py: rows written straight into the tables, as a month of use leaves
them.

The jobs are spread evenly over 30 days. 95 % belong to one tenant; 95 % were completed, 3 % failed. Prompts have 40
words and answers 160, from a vocabulary in which few words are common and most are rare, as in a language. Every job
has one metadata pair of its own and one that most others have.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate
from typing import Any
from urllib.parse import parse_qs, urlsplit

from storage.engine.schema import micros, now

CHUNK = 10_000
TEXTS = 5_000
DAY = 86_400 * 1_000_000
DAYS = 30
TENANT = "default"
RARE_MODEL = "mistral-rare"
RARE_JOBS = 10
VOCABULARY = 30_000

JOBS = [
    "id",
    "tenant",
    "request_id",
    "body_hash",
    "model",
    "metadata",
    "status",
    "created_at",
    "workflow_started_at",
    "started_at",
    "progressed_at",
    "completed_at",
    "fence",
    "attempt",
    "epoch",
    "position",
    "token_count",
    "tail",
    "tail_channel",
    "revision",
    "sealed_by",
    "error_code",
]
REQUESTS = ["job_id", "body"]
RESULTS = ["job_id", "content", "reasoning", "runs", "sha256", "finish_reason", "usage", "usage_estimated", "error"]
ATTEMPTS = [
    "job_id",
    "number",
    "started_at",
    "ended_at",
    "outcome",
    "http_status",
    "estimated",
    "first_token_ms",
    "tokens_before",
]
COLUMNS = {"jobs": JOBS, "requests": REQUESTS, "results": RESULTS, "attempts": ATTEMPTS}

Rows = dict[str, list[tuple[Any, ...]]]


def word(number: int) -> str:
    """A made-up word: the smaller its number, the more common it is."""
    syllables = ("ka", "lo", "mi", "nu", "re", "sa", "ti", "vo", "pe", "du", "fa", "gi", "ho", "je", "qu", "zy")
    found = ""
    while not found or number:
        number, rest = divmod(number, len(syllables))
        found += syllables[rest]
    return f"w{found}"


def texts(chance: random.Random) -> tuple[list[str], list[str]]:
    """Prompts and answers, to be combined."""
    words = [word(number) for number in range(VOCABULARY)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(VOCABULARY)))
    return tuple(
        [" ".join(chance.choices(words, cum_weights=weights, k=size)) for _ in range(TEXTS)] for size in (40, 160)
    )  # type: ignore[return-value]


def chunks(count: int) -> Iterator[Rows]:
    """The rows of ``count`` jobs, CHUNK jobs at a time, oldest first."""
    chance = random.Random(1)  # noqa: S311 - the same store in every run
    prompts, answers = texts(chance)
    begin, step = micros(now()) - DAYS * DAY, DAYS * DAY // count
    for start in range(0, count, CHUNK):
        rows: Rows = {table: [] for table in COLUMNS}
        for number in range(start, min(start + CHUNK, count)):
            _add(rows, number, begin + number * step, count, chance, prompts, answers)
        yield rows


def _add(
    rows: Rows,
    number: int,
    created: int,
    count: int,
    chance: random.Random,
    prompts: Sequence[str],
    answers: Sequence[str],
) -> None:
    job_id = f"job_{chance.getrandbits(128):032x}"  # as random as new ids are
    took = int(chance.lognormvariate(1.2, 0.8) * 1_000_000)
    status = chance.choices(("completed", "failed", "cancelled", "incomplete"), (95, 3, 1, 1))[0]
    code = chance.choice(("upstream_cut", "rate_limited", "queue_timeout")) if status == "failed" else None
    model = RARE_MODEL if number % (count // RARE_JOBS) == 7 else chance.choice(("mistral-small", "mistral-large"))
    answer = answers[number * 7 % TEXTS]
    metadata = json.dumps({"order": str(number), "env": "production"})
    prompt = f"{prompts[number % TEXTS]} number{number}"
    error = json.dumps({"code": code, "message": "It failed", "retryable": True}) if code else None
    usage = '{"prompt_tokens": 40, "completion_tokens": 160, "total_tokens": 200}'
    tenant = TENANT if number % 20 else "other"
    times = (created, created, created + 30_000, created + took, created + took)
    head = (job_id, tenant, f"request-{number}", "0" * 64, model, metadata, status, *times)
    rows["jobs"].append((*head, 1, 1, 1, len(answer), 160, "", 0, 1, "run", code))
    rows["requests"].append((job_id, json.dumps({"messages": [{"role": "user", "content": prompt}], "model": model})))
    rows["results"].append((job_id, answer, "", f"[[0,{len(answer)},160]]", "0" * 64, "stop", usage, False, error))
    first = int(chance.lognormvariate(5.5, 0.5))
    rows["attempts"].append((job_id, 1, created + 30_000, created + took, "finished", 200, False, first, 0))


def fill_sqlite(path: str, count: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    for rows in chunks(count):
        connection.execute("BEGIN IMMEDIATE")
        for table, columns in COLUMNS.items():
            marks = ",".join("?" * len(columns))
            connection.executemany(f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})", rows[table])  # noqa: S608
        connection.execute("COMMIT")
    connection.close()


async def fill_postgres(url: str, count: int) -> None:
    async with _connected(url) as connection:
        for rows in chunks(count):
            async with connection.transaction():
                for table, columns in COLUMNS.items():
                    await connection.copy_records_to_table(table, records=rows[table], columns=columns)


async def vacuum(url: str) -> None:
    """What autovacuum does within minutes."""
    async with _connected(url) as connection:
        await connection.execute("VACUUM ANALYZE")


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:
    import asyncpg  # type: ignore[import-untyped]

    parts = urlsplit(url)
    host = parse_qs(parts.query)["host"][0]
    connection = await asyncpg.connect(host=host, user=parts.username, database=parts.path.lstrip("/"))
    try:
        yield connection
    finally:
        await connection.close()
