"""The state of one process: options, scripts, log."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from random import Random

from simulator import oddities
from simulator.allowance import MinuteWindow
from simulator.calls import ChatCall
from simulator.dialects import SERVERS, Server
from simulator.faults import Continues, Dialect, Odd, Rule, Script, read_directive
from simulator.log import MAX_PROMPT_CHARACTERS, LogEntry, RequestLog
from simulator.replies import Reply, Tempo
from simulator.structured import repair_script

UNLIMITED_REQUESTS_PER_MINUTE = 1_000_000


@dataclass(frozen=True)
class Options:
    """Defaults of the process. ``first_token`` (seconds) and ``rate`` (tokens per second) are inclusive ranges.

    ``continues``: None: as servers of the ``dialect`` do. ``batch_seconds``: how long a batch job is QUEUED;
    ``batch_rate``: its items per second, 0 is no limit.
    """

    first_token: tuple[float, float] = (0.3, 0.8)
    rate: tuple[float, float] = (40, 80)
    seed: int = 0
    requests_per_minute: int | None = None
    continues: Continues | None = None
    batch_seconds: float = 1
    batch_rate: float = 50
    dialect: Dialect = "mistral"


class Simulator:
    """What the routes share."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.log = RequestLog()
        self.rules: list[Rule] = []
        self.started = int(time.time())
        limit = options.requests_per_minute
        self.allowance = MinuteWindow(
            limit or UNLIMITED_REQUESTS_PER_MINUTE, enforced=limit is not None, clock=time.monotonic
        )

    def serve(self, call: ChatCall) -> Server:
        """Set the kind of server that answers ``call``, and return it. Raises DirectiveError."""
        script = self.script(call, spend=False)
        server = self._server(script)
        call.served_as(script.continues or self.options.continues or server.continues)
        return server

    def _server(self, script: Script) -> Server:
        return SERVERS[script.dialect or self.options.dialect]

    def attempt(self, call: ChatCall, entry: LogEntry) -> Reply:
        """The answer to the next attempt of the call's conversation. Raises DirectiveError."""
        script = self.script(call)
        entry.attempt = self.log.attempt(entry.conversation)
        reply = self.reply(call, script, entry.attempt)
        entry.fault = None if reply.fault is None else reply.fault.label
        if isinstance(reply.fault, Odd):
            oddities.named(reply.fault.name)  # raises for an unknown name while a refusal can still be sent
        return reply

    def reply(self, call: ChatCall, script: Script, attempt: int = 1) -> Reply:
        """The answer to a call under a script."""
        seed = f"{self.options.seed} {call.subject}"
        server = self._server(script)
        if server.calls_are_whole():
            script = script.model_copy(update={"tool_style": "whole"})
        return Reply(
            call=call,
            script=script,
            fault=script.fault(attempt) if script.failing in (None, call.model) else None,
            seed=seed,
            tempo=self._tempo(script, call, seed),
            answer_id=uuid.uuid4().hex,
            created=int(time.time()),
            server=server,
        )

    def script(self, call: ChatCall, *, spend: bool = True) -> Script:
        """The directive of the last user message, else the newest rule that matches. Raises DirectiveError."""
        directive = read_directive(call.prompt) or repair_script(call)
        if directive is not None:
            return directive
        rule = next((rule for rule in reversed(self.rules) if rule.match in call.prompt), None)
        if rule is None:
            return Script()
        if spend and rule.times is not None:
            at = next(number for number, other in enumerate(self.rules) if other is rule)
            left = rule.times - 1
            self.rules[at : at + 1] = [rule.model_copy(update={"times": left})] if left else []
        return rule.script

    def _tempo(self, script: Script, call: ChatCall, seed: str) -> Tempo:
        rng = Random(f"{seed if call.random_seed is None else call.random_seed} tempo")  # noqa: S311 - repeatable
        first, rate = rng.uniform(*self.options.first_token), rng.uniform(*self.options.rate)
        if script.first_token_seconds is not None:
            first = script.first_token_seconds
        if script.tokens_per_second is not None:
            rate = script.tokens_per_second
        return Tempo(first, 1 / rate if rate else 0)


def describe(entry: LogEntry, call: ChatCall) -> None:
    """Write what is asked into the log's entry."""
    entry.model, entry.stream, entry.prefix = call.model, call.stream, call.trailing
    entry.prompt = call.prompt[:MAX_PROMPT_CHARACTERS]
    if sum(len(message.text) for message in call.messages) <= MAX_PROMPT_CHARACTERS:
        entry.messages = [message.model_dump(exclude_unset=True) for message in call.messages]
    entry.parameters, entry.conversation = call.parameters, call.conversation
