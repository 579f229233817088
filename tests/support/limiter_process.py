"""A process that takes starts from a lane as fast as it may, and prints when each was and how late (microseconds)."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from domain.values import Claimant
from storage.engine.database import Database
from storage.rate_limits.limiter import LATE_SECONDS, MOST_LATE_SECONDS, Limiter


async def start(limiter: Limiter, asker: Claimant) -> tuple[int, int]:
    """When the call may start: now, on return. And how long after its turn that is."""
    while True:
        turn = await limiter.reserve("lane", asker)
        await asyncio.sleep(max(turn.due - time.monotonic(), 0) if turn.granted else turn.seconds)
        late = time.monotonic() - turn.due
        if turn.granted and late <= MOST_LATE_SECONDS:
            started = time.time_ns() // 1000
            if late > LATE_SECONDS:
                await limiter.report_late_start(turn, late)
            return started, int(late * 1_000_000)


async def main(url: str, per_second: float, count: int) -> None:
    database = await Database.open(url)
    limiter = Limiter(database, per_second=per_second)
    print("up", flush=True)  # noqa: T201
    sys.stdin.readline()

    async def one(number: int) -> None:
        print(*await start(limiter, Claimant(f"job-{os.getpid()}-{number}", "t", 3, number)), flush=True)  # noqa: T201

    await asyncio.gather(*(one(number) for number in range(count)))
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
