"""The requests and tokens allowed per minute, as in the ``x-ratelimit-*`` headers."""

from __future__ import annotations

from collections.abc import Callable

from simulator.refusals import Headers, Refused, rate_limited

WINDOW_SECONDS = 60
TOKENS_PER_MINUTE = 50_000_000


class MinuteWindow:
    """A fixed window of one minute. Without ``enforced`` the headers count down, but nothing is refused."""

    def __init__(self, requests_per_minute: int, *, enforced: bool, clock: Callable[[], float]) -> None:
        self._limit = requests_per_minute
        self._enforced = enforced
        self._clock = clock  # seconds
        self._window = -1
        self._requests = 0
        self._tokens = 0

    def spend(self, tokens: int) -> Headers:
        """Count a request of so many tokens. Returns the headers with the rest. Raises Refused (429)."""
        window = int(self._clock() // WINDOW_SECONDS)
        if window != self._window:
            self._window, self._requests, self._tokens = window, 0, 0
        if self._enforced and self._requests >= self._limit:
            seconds = int(WINDOW_SECONDS - self._clock() % WINDOW_SECONDS) + 1
            raise Refused(rate_limited(seconds, self._headers(tokens)))
        self._requests += 1
        self._tokens += tokens
        return self._headers(tokens)

    def _headers(self, tokens: int) -> Headers:
        return {
            "x-ratelimit-limit-req-minute": str(self._limit),
            "x-ratelimit-remaining-req-minute": str(max(0, self._limit - self._requests)),
            "x-ratelimit-limit-tokens-minute": str(TOKENS_PER_MINUTE),
            "x-ratelimit-remaining-tokens-minute": str(max(0, TOKENS_PER_MINUTE - self._tokens)),
            "x-ratelimit-tokens-query-cost": str(tokens),
        }
