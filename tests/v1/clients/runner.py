"""Runs the cases of a plan with a client: the plan (JSON) from stdin, the outcome of each case to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

IMAGE = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather in a city", "parameters": PARAMETERS},
}


def run(client_of: Callable[[dict[str, Any]], Any], failure: Callable[[Exception], dict[str, Any]], kinds: Any) -> None:
    """``kinds`` has a function ``(client, case)`` for each kind of case; ``client_of`` makes the client of a case."""
    plan = json.load(sys.stdin)
    outcomes = {}
    for name, case in plan.items():
        try:
            outcomes[name] = vars(kinds)[case["kind"]](client_of(case), case)
        except Exception as error:  # noqa: BLE001 - whatever the client raises is the outcome
            outcomes[name] = {"error": failure(error) | {"type": type(error).__name__, "message": str(error)}}
    json.dump(outcomes, sys.stdout)


def messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": case["prompt"]}]


def image_messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": case["prompt"]}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    return [{"role": "user", "content": parts}]
