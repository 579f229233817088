"""Streams of other servers and gateways, by name, in forms that differ from Mistral's.

The names begin with the rows of the collection of cases that they come from. By default the frames have TEXT, or the
tool calls of CALLS; a stream whose name ends in "cut" breaks off in the middle.
"""

from __future__ import annotations

from typing import Any, Final

from simulator.faults import DirectiveError, FramesFault, ScriptedFrame

TEXT: Final = "The tide turns at noon, and the boats come home."
REASONING: Final = "Let me think about boats."
USAGE: Final = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
PIECES: Final = ("The tide turns", " at noon, and", " the boats", " come home.")
THOUGHTS: Final = ("Let me", " think", " about boats.")

Step = dict[str, Any]


def c(delta: Any, finish: Any = None, **more: Any) -> Step:
    """A chunk with one choice."""
    return {"delta": delta, "finish": finish, **more}


def text(said: str, finish: Any = None, **more: Any) -> Step:
    return c({"content": said}, finish, **more)


def calls(*pieces: Step, finish: Any = None) -> Step:
    return c({"tool_calls": list(pieces)}, finish)


def call(arguments: Any = None, *, name: str | None = None, **where: Any) -> Step:
    """A piece of a tool call; ``where`` is its id and index, if given."""
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not None}
    return {**where, "function": function}


def frame(document: Any) -> Step:
    return {"json": document}


def choice(**fields: Any) -> Step:
    """A chunk whose only choice has these fields."""
    return frame({"id": "x", "choices": [{"index": 0, **fields}]})


def raw(line: str) -> Step:
    return {"raw": line}


def wait(seconds: float) -> Step:
    return {"wait": seconds}


CUT: Final[Step] = {"cut": "fin"}
STOP: Final = c({}, "stop")
DONE: Final = raw("data: [DONE]\n\n")
SAID: Final = [text(piece) for piece in PIECES]
HALF: Final = SAID[:2]
ENDING: Final = tuple(map(ScriptedFrame.model_validate, (STOP, DONE)))

WEATHER: Final = '{"city": "Lyon"}'
TIME: Final = '{"zone": "CET"}'
CALLS: Final = (("get_weather", WEATHER), ("get_time", TIME))
_W, _T = {"name": "get_weather"}, {"name": "get_time"}
_PING: Final = frame({"type": "ping"})
CAPACITY: Final = "Service tier capacity exceeded for this model."
CONTEXT: Final = "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it"


def _every(finish: Any, pause: float = 0) -> list[Step]:
    return [step for piece in PIECES for step in (text(piece, finish), wait(pause))]


NO_REASONS: Final[tuple[Any, ...]] = ("", "null", " ", "None", "NULL", 0, False, {})

_WHOLE: Final[dict[str, list[Step]]] = {
    # W1: values for no finish reason
    **{f"W1 {reason!r} on every chunk": _every(reason) for reason in NO_REASONS},
    "W1 pauses": _every("", 0.6),
    "W1 a reason in capitals": [*SAID, c({}, "STOP"), DONE],
    # W2: calls without an index, or with the wrong one
    "W2 no index": [
        calls(call('{"city": ', id="a1", **_W)),
        calls(call('"Lyon"}')),
        calls(call('{"zone"', id="b2", **_T)),
        calls(call(': "CET"}')),
    ],
    "W2 index 0 for both": [
        calls(call("", id="a1", index=0, **_W)),
        calls(call('{"city": "Lyon"}', index=0)),
        calls(call("", id="b2", index=0, **_T)),
        calls(call('{"zone": ', index=0)),
        calls(call('"CET"}')),
    ],
    "W2 in one list": [
        calls(call(WEATHER, id="a1", **_W), call(TIME, id="b2", **_T)),
    ],
    "W2 in one list, index 0": [
        calls(call(WEATHER, id="a1", index=0, **_W), call(TIME, id="b2", index=0, **_T)),
    ],
    "W2 no id and no index": [calls(call(WEATHER, **_W)), calls(call(TIME, **_T))],
    "W2 the same id for both": [
        calls(call(WEATHER, id="call_0", index=0, **_W)),
        calls(call(TIME, id="call_0", index=0, **_T)),
    ],
    "W2 the same id, two indexes": [
        calls(call('{"city": ', id="c", index=0, **_W), call('{"zone": ', id="c", index=1, **_T)),
        calls(call('"Lyon"}', id="c", index=0), call('"CET"}', id="c", index=1)),
    ],
    "W2 everything on each piece": [
        calls(call('{"city": ', id="a1", index=0, **_W)),
        calls(call('"Lyon"}', id="a1", index=0, **_W)),
        calls(call('{"zone": ', id="b2", index=1, **_T)),
        calls(call('"CET"}', id="b2", index=1, **_T)),
    ],
    "W2 a new id on each piece": [
        calls(call('{"city": ', id="a1", index=0, **_W)),
        calls(call('"Lyon"}', id="a2", index=0, **_W)),
        calls(call('{"zone": ', id="b1", index=1, **_T)),
        calls(call('"CET"}', id="b2", index=1)),
    ],
    "W2 interleaved by id": [
        calls(call('{"city": ', id="a1", **_W)),
        calls(call('{"zone": ', id="b2", **_T)),
        calls(call('"Lyon"}', id="a1")),
        calls(call('"CET"}', id="b2")),
    ],
    "W2 null, empty and text for id and index": [
        calls(call('{"city": ', id="a1", index="0", **_W)),
        calls({"id": None, "index": None, "type": None, "function": {"name": None, "arguments": '"Lyon"}'}}),
        calls(call('{"zone": ', id="b2", index="1", **_T)),
        calls({"id": "", "index": "1", "function": {"name": "", "arguments": '"CET"}'}}),
    ],
    # W3: reasoning beside content
    "W3 reasoning_content": [*(c({"reasoning_content": one, "content": None}) for one in THOUGHTS), *SAID],
    "W3 reasoning": [*(c({"reasoning": one, "content": ""}) for one in THOUGHTS), *SAID],
    "W3 both fields": [*(c({"reasoning": one, "reasoning_content": one}) for one in THOUGHTS), *SAID],
    "W3 details": [
        *(
            c({"reasoning": one, "reasoning_details": [{"type": "reasoning.text", "text": one, "index": 0}]})
            for one in THOUGHTS
        ),
        c({"reasoning_details": [{"type": "reasoning.encrypted", "data": "AAAA"}]}),
        *SAID,
    ],
    "W3 objects": [*(c({"reasoning": {"text": one}}) for one in THOUGHTS), *SAID],
    "W3 for longer than the first token may take": [
        *(step for one in THOUGHTS for step in (c({"reasoning_content": one}), wait(0.7))),
        *SAID,
    ],
    "W3 between pieces": [
        c({"reasoning_content": "Let me think"}),
        *HALF,
        c({"reasoning": " about boats."}),
        *SAID[2:],
    ],
    # W5: empty usage
    "W5 empty and zero": [
        text(PIECES[0], usage={}),
        text(PIECES[1], usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        text(PIECES[2], usage=USAGE),
        text(PIECES[3], usage=None),
        c({}, "stop", usage={}),
        frame({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}),
        DONE,
    ],
    "W5 no total": [*SAID, c({}, "stop", usage={"prompt_tokens": 9, "completion_tokens": 12}), DONE],
    "W5 within the choice": [*SAID, choice(delta={}, finish_reason="stop", usage=USAGE), DONE],
    # W6: frames without choices
    "W6 everywhere": [
        _PING,
        frame({"choices": None}),
        raw("event: ping\ndata: {}\n\n"),
        raw("data: null\n\n"),
        SAID[0],
        frame({"choices": [], "usage": USAGE}),
        SAID[1],
        frame({"id": "x", "object": "chat.completion.chunk", "prompt_filter_results": []}),
        SAID[2],
        frame({"choices": [], "error": None}),
        SAID[3],
        STOP,
        _PING,
        frame({"choices": None, "usage": USAGE}),
        _PING,
        DONE,
    ],
    # W7: a whole message
    "W7 message in place of delta": [
        choice(message={"role": "assistant", "content": TEXT}, finish_reason="stop"),
        DONE,
    ],
    "W7 messages in pieces": [choice(message={"content": one}, finish_reason=None) for one in PIECES],
    "W7 message beside delta": [
        choice(delta={"content": one}, message={"content": "".join(PIECES[: at + 1])}, finish_reason=None)
        for at, one in enumerate(PIECES)
    ],
    "W7 the whole again at the end": [*SAID, choice(message={"content": TEXT}, finish_reason="stop"), DONE],
    "W7 text": [choice(text=one, finish_reason=None) for one in PIECES],
    # W8: a finish reason beside everything
    "W8 a finish reason with each call": [
        calls(call(WEATHER, id="a1", index=0, **_W), finish="tool_calls"),
        wait(3),
        calls(call(TIME, id="b2", index=1, **_T), finish="tool_calls"),
    ],
    "W8 stop on every chunk": _every("stop"),
    "W8 text after the finish reason": [*HALF, STOP, wait(3), *SAID[2:], frame({"choices": [], "usage": USAGE}), DONE],
    "W8 a broken frame after the end": [*SAID, c({}, "stop", usage=USAGE), raw("data: {oops\n\n")],
    "W8 an error after the end": [*SAID, c({}, "stop", usage=USAGE), frame({"error": {"message": "too late"}})],
    "W8 cut after the end": [*SAID, STOP, CUT],
    # W9: arguments as an object
    "W9 an empty object first": [
        calls(call({}, id="a1", index=0, **_W)),
        calls(call('{"city": "Lyon"}', index=0)),
        calls(call({}, id="b2", index=1, **_T)),
        calls(call('{"zone": "CET"}', index=1)),
    ],
    "W9 objects": [
        calls(call({"city": "Lyon"}, id="a1", index=0, **_W)),
        calls(call({"zone": "CET"}, id="b2", index=1, **_T)),
    ],
    "W9 an empty object as text first": [
        calls(call("{}", id="a1", index=0, **_W)),
        calls(call('{"city": "Lyon"}', index=0)),
        calls(call(TIME, id="b2", index=1, **_T)),
    ],
    # W14: usage that changes
    "W14 provisional figures": [
        text(PIECES[0], usage={"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}),
        *SAID[1:],
        c({}, "stop", usage={"prompt_tokens": 9, "completion_tokens": 50, "total_tokens": 59}),
        frame({"choices": [], "usage": USAGE}),
        DONE,
    ],
    # framing
    "F one line break between frames": [
        raw("".join(f'data: {{"choices":[{{"index":0,"delta":{{"content":"{one}"}}}}]}}\n' for one in PIECES)),
        raw('data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\ndata: [DONE]\n'),
    ],
    "F data twice": [
        *(raw(f'data: data: {{"choices":[{{"delta":{{"content":"{one}"}}}}]}}\n\n') for one in PIECES),
    ],
}

_BROKEN: Final[dict[str, list[Step]]] = {
    "W1 empty on every chunk, cut": [text(piece, "") for piece in PIECES[:2]] + [CUT],
    "W1 null on every chunk, ended": [text(piece, "null") for piece in PIECES[:2]],
    "W3 thinking, cut": [*(c({"reasoning": one}) for one in THOUGHTS), CUT],
    "W6 nothing but pings": [_PING, _PING],
    "W8 stop on every chunk, cut": [text(piece, "stop") for piece in PIECES[:2]] + [CUT],
    "W8 stop on every chunk, cut after the first": [text(PIECES[0], "stop"), CUT],
    "W8 stop on every chunk, ended": [text(piece, "stop") for piece in PIECES[:3]],
    "W8 stop on every chunk, an error": [*(text(one, "stop") for one in PIECES[:2]), frame({"error": "gone"})],
    "W8 a finish reason with each call, cut": [calls(call(WEATHER, id="a1", **_W), finish="tool_calls"), CUT],
    "W8 text after the finish reason, cut": [*HALF, STOP, SAID[2], CUT],
    "finish reason abort": [*HALF, c({}, "abort"), DONE],
    "finish reason insufficient_system_resource": [*HALF, c({}, "insufficient_system_resource"), DONE],
    "[DONE] without a finish reason": [*HALF, DONE],
}

_ERRORS: Final[dict[str, list[Step]]] = {
    "W4 capacity": [
        frame({"object": "error", "message": CAPACITY, "type": "invalid_request_error", "param": None, "code": None})
    ],
    "W4 capacity after some text": [
        *HALF,
        frame({"object": "error", "message": CAPACITY, "type": "invalid_request_error", "code": None}),
    ],
    "W4 rate limit as words": [frame({"message": "Requests rate limit exceeded"})],
    "W4 rate limit as a string": [frame({"error": "Rate limit exceeded, please slow down"})],
    "W4 rate limit by status": [frame({"error": {"code": 429, "message": "Provider returned error"}})],
    "W4 rate limit within a string": [
        frame({"error": {"message": 'Upstream said: {"object":"error","message":"Slow.","code":"1300"}'}})
    ],
    "W4 error field, 429": [raw('error: {"code":429,"message":"Too busy.","type":"x"}\n\n')],
    "W4 error field, 400": [raw(f'error: {{"code":400,"message":"{CONTEXT}","type":"exceed_context_size_error"}}\n\n')],
    "W4 error in an object, 400": [
        frame({"error": {"code": 400, "message": CONTEXT, "type": "invalid_request_error"}}),
    ],
    "W4 event error, 400": [raw('event: error\ndata: {"code": 400, "message": "Bad tool schema."}\n\n')],
    "W4 error field, 500": [raw('error: {"code":500,"message":"slot unavailable","type":"server_error"}\n\n')],
    "W4 words alone": [raw("event: error\ndata: something broke\n\n")],
    "W4 within the choice": [
        choice(delta={"content": ""}, finish_reason="error", error={"code": 429, "message": "Busy."}),
    ],
}


def named(name: str) -> FramesFault:
    """The stream of this name. Raises DirectiveError."""
    if name not in (*WHOLE, *BROKEN, *ERRORS):
        raise DirectiveError(f"no odd stream is called {name!r}; see simulator/oddities.py")
    if name in _WHOLE:
        steps = _WHOLE[name]
        return _frames(steps, ending=DONE not in steps and CUT not in steps and not name.startswith("F one"))
    return _frames(_BROKEN[name] if name in _BROKEN else _ERRORS[name], ending=False)


def _frames(steps: list[Step], *, ending: bool) -> FramesFault:
    return FramesFault(frames=[ScriptedFrame.model_validate(step) for step in steps], ending=ending)


WHOLE: Final = tuple(_WHOLE)
"""Names of streams with a whole answer."""
BROKEN: Final = tuple(_BROKEN)
"""Names of streams without a whole answer."""
ERRORS: Final = tuple(_ERRORS)
"""Names of streams that end in an error."""
