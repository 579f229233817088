"""Plans the next call of an interrupted answer, and decides whether the text so far may stay. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from activities.token_counts import Counter
from chatjobs.contracts import Channel, ChatRequest, Usage
from domain.continuing import own_prefix
from domain.errors import UpstreamError, UpstreamRefused
from domain.estimates import prompt_ceiling, prompt_tokens, text_ceiling
from domain.ports import CANNOT_CONTINUE, Continuing
from domain.tokens import Estimate, Sample, estimated
from domain.values import AttemptHistory, Stretch, TextRun

MOST_ROOM = 16
"""Tokens for repeated whitespace, where the deltas show how many it took; otherwise one is allowed."""
LEAST_SAMPLE = 2
"""The fewest tokens that make a call a sample."""


@dataclass(frozen=True, slots=True)
class CallPlan:
    """One call of the model.

    ``prompt_tokens``: a rough count, with the text so far. ``continue_from``: the content so far; None for a call from
    the beginning. ``tokens_left``: those that limits.maxTotalTokens (the cap) allows; or None. ``room``: tokens that
    the model needs to repeat whitespace, beside those of ``request.max_tokens``, which are for new text.
    """

    request: ChatRequest
    prompt_tokens: int = 0
    continue_from: str | None = None
    tokens_left: int | None = None
    room: int = 0

    def estimated(self, completion_tokens: int) -> Usage:
        """The usage of a call for which none was reported."""
        total = self.prompt_tokens + completion_tokens
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=completion_tokens, total_tokens=total)

    @property
    def nothing_left(self) -> bool:
        """The answer has reached its length limit already."""
        return self.request.max_tokens is not None and self.request.max_tokens <= 0

    def is_full(self, counter: Counter) -> bool:
        """Whether the answer has reached its length limit although the model goes on: it had room for repeated
        whitespace and did not need it. Known only where each delta is one token."""
        most = self.request.max_tokens
        return self.room > 0 and most is not None and not counter.merged and counter.count >= most

    @property
    def over_cap(self) -> bool:
        """The cap allows no call, and the answer needs one."""
        return self.tokens_left is not None and self.tokens_left <= 0 and not self.nothing_left

    @property
    def sent(self) -> ChatRequest:
        """The request for the model. Its length limit is within the cap, even if this process dies during the call."""
        if self.ends_at_cap:
            return self.request.model_copy(update={"max_tokens": self.tokens_left})
        if not self.room or self.request.max_tokens is None:
            return self.request
        most = self.request.max_tokens + self.room
        return self.request.model_copy(
            update={"max_tokens": most if self.tokens_left is None else min(most, self.tokens_left)}
        )

    @property
    def ends_at_cap(self) -> bool:
        """The cap comes before the caller's own length limit."""
        most = self.request.max_tokens
        return self.tokens_left is not None and (most is None or self.tokens_left < most)


def plan(
    request: ChatRequest,
    past: AttemptHistory,
    runs: Sequence[TextRun] = (),
    samples: Sequence[Sample] = (),
    unsent: str = "",
) -> CallPlan:
    """The next call: from the beginning, or, if there are ``runs``, from their end.

    ``samples``: calls of the model that were counted. ``unsent``: whitespace at the end of the content that the model
    has to say again.
    """
    prompt = prompt_tokens(request) + (runs[-1].token_count if runs else 0)
    left = _left(request, past, runs)
    if not runs:
        return CallPlan(request, prompt, tokens_left=left)
    so_far = said(past.stretches, runs, samples)
    singly = so_far.sure and not any(one.tokens for one in past.stretches if not one.closed)
    room = min(len(unsent), MOST_ROOM if singly else 1)
    return CallPlan(_shortened(request, so_far.tokens), prompt, content(runs), left, room)


def said(stretches: Sequence[Stretch], runs: Sequence[TextRun], samples: Sequence[Sample]) -> Estimate:
    """Tokens of the present segment so far, estimated high rather than low."""
    text = "".join(run.text for run in runs)
    known = [
        Sample(one.tokens, one.deltas, text[one.start : one.end])
        for one in stretches
        if one.tokens and one.deltas and one.tokens >= LEAST_SAMPLE
    ]
    found = [_of_stretch(one, text, [*known, *samples]) for one in stretches if not one.closed]
    return Estimate(sum(one.tokens for one in found), all(one.sure for one in found))


def _of_stretch(stretch: Stretch, text: str, samples: Sequence[Sample]) -> Estimate:
    if stretch.tokens is not None:
        return Estimate(stretch.tokens, sure=True)
    return estimated(text[stretch.start : stretch.end], stretch.deltas, samples, stretch.most)


def counted(request: ChatRequest, past: AttemptHistory) -> bool:
    """Whether the length of the answer is known without an estimate, or does not matter."""
    limited = request.max_tokens is not None or request.min_tokens is not None
    return not limited or all(one.closed or not one.deltas or one.tokens is not None for one in past.stretches)


def _left(request: ChatRequest, past: AttemptHistory, runs: Sequence[TextRun]) -> int | None:
    """Tokens that limits.maxTotalTokens leaves for another answer. Prompts are estimated high: it is a promise."""
    cap = request.limits.max_total_tokens
    if cap is None:
        return None
    prompt = prompt_ceiling(request)
    so_far = max(runs[-1].token_count, text_ceiling(content(runs))) if runs else 0
    margin = past.estimated * max(prompt - prompt_tokens(request), 0)  # earlier prompts may have been estimated low
    uncounted = [one for one in past.stretches if one.tokens is None and one.most is None]  # a token per delta so far
    text = "".join(run.text for run in runs)
    margin += sum(max(_of_stretch(one, text, ()).tokens - one.deltas, 0) for one in uncounted)
    return cap - past.total_tokens - margin - prompt - so_far


def _shortened(request: ChatRequest, said: int) -> ChatRequest:
    """The request with its limits on the answer's length reduced by what the answer has already."""
    limits = {}
    if request.max_tokens is not None:
        limits["max_tokens"] = request.max_tokens - said
    if request.min_tokens is not None:
        limits["min_tokens"] = max(
            0, request.min_tokens - said
        )  # by the same number, so that it does not exceed max_tokens
    return request.model_copy(update=limits)


def content(runs: Sequence[TextRun]) -> str:
    return "".join(run.text for run in runs if run.channel is Channel.CONTENT)


def obstacle(request: ChatRequest, runs: Sequence[TextRun], continuing: Continuing) -> str | None:
    """Why the model cannot continue this text as it would have; None if it can."""
    if continuing is Continuing.OTHER_FORMATS:  # it may begin the JSON again, behind its beginning
        return "response_format"
    if continuing is not Continuing.KNOWN:  # it may begin a new answer, which would be appended to the old one
        return "unproven" if continuing is Continuing.UNPROVEN else "no_continuation"
    if request.tools or request.tool_choice is not None:
        return "tools"  # a prefix beside them may be refused
    if runs[-1].channel is not Channel.CONTENT:
        return "reasoning"  # a thought that is not at its end cannot be given back
    if not (own_prefix(request) + content(runs)).strip():
        return "blank"  # a blank prefix yields garbage
    return None


def form(request: ChatRequest) -> str:
    """The type of the answer's form."""
    return "text" if request.response_format is None else request.response_format.type


def starts_over(error: UpstreamError) -> bool:
    """Whether the model refused to go on from a text; it may well answer from the beginning."""
    refused = isinstance(error, UpstreamRefused) and error.reason == "upstream_rejected" and error.http_status != 404
    return refused or error.reason == CANNOT_CONTINUE


def has_own_prefix(request: ChatRequest) -> bool:
    """Whether the caller has written the beginning of the answer."""
    return request.messages[-1].role == "assistant"
