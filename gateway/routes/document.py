"""The OpenAPI document: what FastAPI generates, completed with what it cannot infer from the routes.

``python -m gateway.openapi`` writes ``openapi.json``; a test compares the two.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.auth.roles import NEEDED
from gateway.v1.errors import RESPONSES_PATH, is_v1

CONVERTER = re.compile(r":path(?=})")
"""Starlette's mark of a parameter that may have slashes, which is not in the document."""
PREFIX = "#/components/schemas/"
OPEN_TO_ALL = ("/healthz", "/readyz")
METHODS = ("get", "put", "post", "delete", "patch")
PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong (RFC 9457). `code` is stable. It never has what was sent.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "Where, as JSON pointers (RFC 6901), and why",
            "items": {
                "type": "object",
                "required": ["pointer", "message"],
                "properties": {"pointer": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
FAILURE = {
    "description": "A problem; `code` says which",
    "content": {"application/problem+json": {"schema": {"$ref": f"{PREFIX}Problem"}}},
}

V1_ERROR: dict[str, Any] = {
    "type": "object",
    "title": "Error",
    "description": "What went wrong, in Mistral's form. `code` is stable. It never has what was sent.",
    "required": ["object", "message", "type", "param", "code"],
    "properties": {
        "object": {"const": "error"},
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"], "description": "The first parameter that is wrong"},
        "code": {"type": ["string", "null"]},
        "error": {"type": "object", "description": "The same in OpenAI's form"},
    },
}
V1_FAILURE = {
    "description": "An error; `code` says which",
    "content": {"application/json": {"schema": {"$ref": f"{PREFIX}Error"}}},
}
RESPONSES_ERROR = {
    "type": "object",
    "title": "OpenAIError",
    "description": "What went wrong, in OpenAI's form. `code` is stable. It never has what was sent.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {name: V1_ERROR["properties"][name] for name in ("message", "type", "param", "code")},
        }
    },
}
RESPONSES_FAILURE = {
    "description": "An error; `code` says which",
    "content": {"application/json": {"schema": {"$ref": f"{PREFIX}OpenAIError"}}},
}


KEY_NEEDED = "Not needed where no keys are configured. `x-role` of an operation is the role that the key must have"


def described(app: FastAPI) -> dict[str, Any]:
    """The document, generated once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        roles = {(method.lower(), CONVERTER.sub("", path)): role for (method, path), role in NEEDED.items()}
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for path, operations in document["paths"].items():
            for method in METHODS:
                if method in operations:
                    _complete(operations[method], schemas, _failure(path), open_to_all=path in OPEN_TO_ALL)
                    if role := roles.get((method, path)):
                        operations[method]["x-role"] = role.value
        schemas |= {"Problem": PROBLEM, "Error": V1_ERROR, "OpenAIError": RESPONSES_ERROR}
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": KEY_NEEDED}
        }
        app.openapi_schema = document
    return app.openapi_schema


def _failure(path: str) -> dict[str, Any]:
    if path.startswith(RESPONSES_PATH):
        return RESPONSES_FAILURE
    return V1_FAILURE if is_v1(path) else FAILURE


def _complete(
    operation: dict[str, Any], schemas: dict[str, Any], failure: dict[str, Any], *, open_to_all: bool
) -> None:
    _hoist(operation, schemas)
    responses = operation["responses"]
    responses.pop("422", None)
    for status, response in responses.items():
        if status >= "400":
            response["content"] = failure["content"]
    responses["default"] = failure
    operation["security"] = [{}] if open_to_all else [{"key": []}, {}]


def _hoist(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Move the ``$defs`` of a request body's schema to the document's components."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content.get("schema", {})
        own = schema.pop("$defs", {})
        if not own:
            continue
        names = {name: name if schemas.get(name, found) == found else f"{name}Input" for name, found in own.items()}
        name = schema.get("title", "Body")
        schemas[name] = _renamed(schema, names)
        for given, found in own.items():
            schemas[names[given]] = _renamed(found, names)
        content["schema"] = {"$ref": f"{PREFIX}{name}"}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """``value`` with references to ``$defs`` replaced by references to components."""
    if isinstance(value, dict):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    if isinstance(value, str) and value.startswith("#/$defs/"):
        return PREFIX + names[value.removeprefix("#/$defs/")]
    return value
