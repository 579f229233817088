"""What a server sends beside an answer, in fields that this version does not know."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from chatjobs.contracts import ChatResult, JobStatus, JsonObject
from domain.chat_completion import chat_completion
from domain.ports import Finish
from providers.mistral.answer import Answer
from providers.mistral.extras import MAX_BYTES
from tests.support.mistral_stream import DONE, USAGE, chunk, sse, text


def extra(*documents: dict[str, Any]) -> Any:
    return finish(*documents).extra


def finish(*documents: dict[str, Any]) -> Finish:
    answer = Answer()
    for document in documents:
        for _ in answer.feed(sse(document)):
            pass
    for _ in answer.feed(DONE):
        pass
    return answer.finish()


END = chunk({}, "stop", usage=USAGE)


def choice(delta: dict[str, Any], reason: str | None = None, **fields: Any) -> dict[str, Any]:
    found = chunk(delta, reason)
    found["choices"][0] |= fields
    return found


def test_an_answer_of_known_fields_has_nothing_beside_it() -> None:
    padded = [text(word, p="abc", obfuscation="xyz") for word in ("Hel", "lo")]
    assert extra(chunk({"role": "assistant", "content": ""}), *padded, END) is None
    assert extra(text("Hi"), choice({"content": "x"}, logprobs=None, token_ids=None), END) is None
    assert extra(chunk({"content": "x", "reasoning_content": None, "annotations": []}), END) is None


def test_fields_of_the_response() -> None:
    """The last value counts: servers repeat it, and some count on."""
    first = text("Hi", system_fingerprint="a", service_tier="default", citations=["x"])
    last = chunk({}, "stop", usage=USAGE, system_fingerprint="b", timings={"predicted_n": 1}, citations=["x", "y"])
    found = {
        "system_fingerprint": "b",
        "service_tier": "default",
        "timings": {"predicted_n": 1},
        "citations": ["x", "y"],
    }
    assert extra(first, text("!"), last) == found


def test_fields_that_only_a_chunk_of_plain_text_has() -> None:
    assert extra(text("Hi", citations=["x"]), END) == {"citations": ["x"]}
    assert extra(text("Hi"), {"choices": [], "prompt_filter_results": [{"a": 1}]}, END) == {
        "prompt_filter_results": [{"a": 1}]
    }


def logprob(token: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -0.5, "bytes": list(token.encode())}], "refusal": None}


def test_pieces_of_a_choices_fields_are_joined() -> None:
    """OpenAI's ``logprobs``, vLLM's ``token_ids`` and ``stop_reason``."""
    found = extra(
        choice({"content": "Hel"}, logprobs=logprob("Hel"), token_ids=[1]),
        choice({"content": "lo"}, logprobs=logprob("lo"), token_ids=[2, 3]),
        choice({}, "stop", stop_reason="###", token_ids=[]),
    )
    logprobs = {"content": [*logprob("Hel")["content"], *logprob("lo")["content"]], "refusal": None}
    assert found == {"choice": {"logprobs": logprobs, "token_ids": [1, 2, 3], "stop_reason": "###"}}


def test_equal_pieces_are_pieces() -> None:
    """A model says the same token twice."""
    found = extra(*(choice({"content": "ha"}, token_ids=[7], logprobs=logprob("ha")) for _ in range(3)), END)
    assert found["choice"]["token_ids"] == [7, 7, 7]
    assert len(found["choice"]["logprobs"]["content"]) == 3


def test_pieces_of_a_messages_fields_are_joined() -> None:
    """As LiteLLM and OpenAI send them."""
    thought = {"type": "thinking", "thinking": "Hm", "signature": "mistral"}
    found = extra(
        chunk({"reasoning_content": "Hm", "thinking_blocks": [thought]}),
        chunk({"content": "Hi", "provider_specific_fields": {"citations": ["a"]}, "annotations": [{"n": 1}]}),
        chunk({"content": "!", "provider_specific_fields": {"citations": ["b"], "id": 7}, "annotations": [{"n": 2}]}),
        END,
    )
    assert found == {
        "message": {
            "thinking_blocks": [thought],
            "provider_specific_fields": {"citations": ["a", "b"], "id": 7},
            "annotations": [{"n": 1}, {"n": 2}],
        }
    }


def test_an_answer_of_litellm_as_it_was_recorded() -> None:
    """Its chunks have no finish reason before the last, and the usage has a choice."""
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "small"}

    def of(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, **more}]}

    ended = finish(
        of({"role": "assistant", "content": ""}),
        of({"content": "Hi"}),
        of({"content": " there"}),
        of({}, finish_reason="stop"),
        {**of({}), "system_fingerprint": "vllm", "usage": {**USAGE, "cost": 4.05e-06}},
    )
    assert (ended.reason, ended.extra) == ("stop", {"system_fingerprint": "vllm"})
    assert ended.usage is not None
    assert ended.usage.model_dump() == {**USAGE, "cost": 4.05e-06}


def test_a_whole_completion() -> None:
    answer = Answer()
    message = {"role": "assistant", "content": "Hi", "annotations": [1]}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprob("Hi")}]}
    for _ in answer.document(document | {"id": "x", "object": "chat.completion", "kv_transfer_params": {"a": 1}}):
        pass
    assert answer.finish().extra == {
        "kv_transfer_params": {"a": 1},
        "message": {"annotations": [1]},
        "choice": {"logprobs": logprob("Hi")},
    }


@pytest.mark.parametrize("ping", [{"type": "status", "note": "x"}, {"choices": None, "note": "x"}, {"note": "x"}])
def test_pings_are_not_part_of_the_answer(ping: dict[str, Any]) -> None:
    assert extra(text("Hi"), ping, END) is None


def test_all_together_have_64_kb() -> None:
    """A field that does not fit is left out whole, whenever it grows too large, and named."""
    pieces = [choice({"content": "x"}, logprobs=logprob("x" * 1_000)) for _ in range(40)]
    found = extra(*pieces, chunk({}, "stop", small="y", large="z" * MAX_BYTES))
    assert found == {"small": "y", "dropped": ["choice.logprobs", "large"]}
    assert len(json.dumps(extra(chunk({}, "stop", **{f"f{n}": "z" * 999 for n in range(200)})))) < MAX_BYTES + 2_000


def test_names_without_end_do_not_grow() -> None:
    found = extra(*(chunk({"content": "x"}, **{f"{n}" * 2_000: "z" * MAX_BYTES}) for n in range(100)), END)
    assert len(found["dropped"]) == 20
    assert all(len(name) <= 100 for name in found["dropped"])


def test_long_names_that_begin_alike_are_counted_each() -> None:
    found = extra(*(chunk({"content": "x"}, **{f"{'n' * 200}{n}": "z" * 9_000}) for n in range(60)), END)
    assert len(json.dumps(found)) < MAX_BYTES + 4_000


def test_half_of_a_list_is_never_kept() -> None:
    """Not even after so many fields were left out that their names are not kept."""
    many = [chunk({"content": "x"}, **{f"f{n}": "z" * MAX_BYTES}) for n in range(30)]
    pieces = [choice({"content": "x"}, logprobs=logprob("x" * 1_000)) for _ in range(40)]
    assert "choice" not in extra(*many, *pieces, choice({"content": "x"}, logprobs=logprob("x")), END)


def test_what_json_does_not_have_is_left_out() -> None:
    answer = Answer()
    for data in (b'{"choices":[],"a":NaN,"b":"\\ud83d","c":1}', sse(text("Hi"), END)[6:].split(b"\n\ndata: ")[0]):
        for _ in answer.feed(b"data: " + data + b"\n\n"):
            pass
    for _ in answer.feed(sse(END) + DONE):
        pass
    assert answer.finish().extra == {"b": "\ufffd", "c": 1, "dropped": ["a"]}


def test_fields_stand_where_they_stood() -> None:
    """And never in place of our own."""
    beside: JsonObject = {"citations": ["x"], "id": "theirs", "dropped": ["large"]}
    beside["message"] = {"annotations": [1], "role": "x"}
    beside["choice"] = {"logprobs": {"content": []}, "index": 9}
    result = ChatResult(
        job_id="j1",
        request_id="r1",
        status=JobStatus.COMPLETED,
        model="m",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        content="Hi",
        finish_reason="stop",
        extra=beside,
    )
    completion = chat_completion(result)
    assert (completion["citations"], completion["id"], "dropped" in completion) == (["x"], "chatcmpl-j1", False)
    (found,) = completion["choices"]
    assert (found["index"], found["logprobs"]) == (0, {"content": []})
    assert found["message"] == {"annotations": [1], "role": "assistant", "content": "Hi", "tool_calls": None}
