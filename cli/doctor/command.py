"""`starter.py doctor`: checks everything that the service needs, and says how to fix what is missing.

All checks run concurrently, each with a time limit. Nothing is changed: no database is created or migrated. No key and
no secret is shown. The checks are in cli/doctor/checks.py, those of --live in cli/doctor/live.py, which also stores its
measurement for the workers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from chatjobs.errors import ChatJobsError
from cli.doctor import checks as doctor_checks
from cli.doctor.checks import Environment, Examination, Finding, Status
from cli.output import complain, console, one_line, safe, write
from cli.place import find

CHECK_SECONDS = 6.0
MOST_MODELS = 5
"""A job has at most so many: ``model`` and four of ``fallbackModels``."""
OK, PROBLEM = 0, 1
COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True)
class LiveCalls:
    """The calls of ``--live``: of ``models`` (the usual one, if none), ``calls`` of each to judge its continued answers
    in at most ``seconds``; None is the usual number."""

    models: Sequence[str]
    calls: int | None = None
    seconds: float | None = None


async def run(*, live: LiveCalls | None, as_json: bool) -> int:
    """Print the findings; the exit code. ``live``: the calls of models that are to be made, too."""
    logging.getLogger().addHandler(logging.NullHandler())  # the findings have everything for a person
    report = Report(as_json=as_json)
    try:
        environment = Environment(find(), os.environ)
    except ChatJobsError as error:
        broken = Finding("settings", "problem", error.message, "correct the variables that are named")
        report.add([broken, *await doctor_checks.versions()])
        return report.end()
    report.add(await examined(environment))
    if live:
        await _live(environment, report, live)
    return report.end()


async def examined(environment: Environment) -> list[Finding]:
    """The findings of all checks, in their order."""
    found = await asyncio.gather(*(_within_time(check, environment) for check in doctor_checks.CHECKS))
    return [finding for findings in found for finding in findings]


async def _within_time(check: Examination, environment: Environment) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check(environment)
    except TimeoutError:
        found = f"no answer within {CHECK_SECONDS:g} s"
    except (ChatJobsError, OSError) as error:
        found = str(error)
    return [Finding(check.__name__, "problem", found, "see whether what it asks is running and can be reached")]


async def _live(environment: Environment, report: Report, live: LiveCalls) -> None:
    from activities.continuation_check import CALLS, CheckLimits
    from activities.continuation_check import CHECK_SECONDS as JUDGE_SECONDS
    from cli.doctor import live as doctor_live
    from domain.continuing import server_name

    names = tuple(dict.fromkeys(live.models)) or (doctor_live.MODEL,)
    calls = CALLS if live.calls is None else live.calls
    limits = CheckLimits(calls, JUDGE_SECONDS if live.seconds is None else live.seconds)
    complain(doctor_live.bound(names, calls))
    server = server_name(environment.settings.mistral_server_url)
    async for found in doctor_live.examined(environment.settings, names, limits):
        if isinstance(found, Finding):
            report.add([found])
        else:
            report.judge(doctor_live.described(server, found))


class Report:
    """Prints findings as they come, or as one JSON object at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._findings: list[Finding] = []
        self._judgements: list[dict[str, Any]] = []

    def add(self, findings: Sequence[Finding]) -> None:
        self._findings += findings
        if not self._as_json:
            for finding in findings:
                self._print(finding)

    def judge(self, judgement: dict[str, Any]) -> None:
        """Add a judgement on continued answers, for programs; its findings are for people."""
        self._judgements.append(judgement)

    def end(self) -> int:
        """Print the summary or the JSON object; the exit code."""
        count = {status: sum(one.status == status for one in self._findings) for status in COLOURS}
        if self._as_json:
            checks = [finding._asdict() for finding in self._findings]
            trust = {"trust": self._judgements} if self._judgements else {}
            write(f"{one_line({'ok': not count['problem'], 'checks': checks} | trust)}\n")
        elif count["problem"] or count["warning"]:
            write(f"problems: {count['problem']}, warnings: {count['warning']}\n")
        else:
            write("Everything is well.\n")
        sys.stdout.flush()
        return PROBLEM if count["problem"] else OK

    def _print(self, finding: Finding) -> None:
        line = Text.assemble((f"{finding.status:8}", COLOURS[finding.status]), f"{finding.check:18} ")
        console().print(line.append(safe(finding.found)), soft_wrap=True)
        if finding.fix:
            console().print(Text(f"{'':27}→ {safe(finding.fix)}"), soft_wrap=True)
