"""`make replay`: replay the committed histories and the given files with the code as it is.

Exit codes: 0 every history replays, 1 one does not, 2 a file has no history.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from temporalio.runtime import Runtime, TelemetryConfig

from domain.process_exit import exit_now
from tests.replay.record import HISTORIES, SHORT, short_histories
from tests.replay.replaying import Difference, NotAHistory, read, replay
from workflows.workers import WORKFLOWS

OK, DIFFERS, UNUSABLE = 0, 1, 2
ADVICE = """\
A run whose history differs stops when this code takes it over: its workflow task fails, again and again, until code
that replays it is back. Before the deploy, do one of these:
  patch     guard the change with workflow.patched("a-name"): runs that have taken the old steps keep them
  build id  deploy the code under a new build id, and let workers of the old build end its runs (Worker Versioning)
After the deploy:
  reset     {reset}
            takes the run back to before the step, and the code goes on from there; a job keeps its text"""


async def check(files: Sequence[Path], workflows: Sequence[type] = WORKFLOWS) -> int:
    """Replay histories, print what was found, return the exit code."""
    unusable, resets = False, list[str]()
    for path in files:
        try:
            history = read(path)
            with short_histories() if path.parent == HISTORIES and path.stem in SHORT else nullcontext():
                found = await replay(history, workflows)
        except NotAHistory as error:
            unusable = True
            print(f"{_shown(path)}: {error}")
            continue
        print(f"{_shown(path)}: {'replays' if found is None else 'differs'}")
        if found is not None:
            print(_told(found))
            resets.append(_reset(history.workflow_id, found))
    if resets:
        print(f"\n{len(resets)} of {len(files)} histories differ.\n{ADVICE.format(reset=resets[0])}")
        return DIFFERS
    return UNUSABLE if unusable else OK


def _shown(path: Path) -> Path:
    """The path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _told(found: Difference) -> str:
    where = f"event {found.event}" if found.event else "here"
    return f"  history   {where}: {found.in_history}\n  code      {found.in_code}\n  SDK       {found.message}"


def _reset(workflow_id: str, found: Difference) -> str:
    to = f"--event-id {found.task}" if found.task else "--type FirstWorkflowTask"
    return f"temporal workflow reset --workflow-id {workflow_id} {to} --reason 'steps changed'"


def main(arguments: Sequence[str]) -> int:
    """The committed histories come first, then the files that the command names."""
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=None)), error_if_already_set=False)
    return asyncio.run(check([*sorted(HISTORIES.glob("*.json")), *map(Path, arguments)]))


if __name__ == "__main__":
    exit_now(main(sys.argv[1:]))
