"""Files of the JavaScript client that are made from the contracts: its types, and the shapes that it reads.

python -m tests.clients.generated              # writes src/shapes.js and types/contracts.d.ts
python -m tests.clients.generated --types      # also the other types, which TypeScript makes of the sources' JSDoc
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from chatjobs import contracts as c
from chatjobs.contracts import statuses
from gateway.routes.sessions import StreamToken
from tests.support.needs import program
from tests.support.npm import installed
from tests.support.stack import ROOT

CLIENT = ROOT / "clients" / "typescript"
Schema = dict[str, Any]

Models = tuple[type[BaseModel], ...]

EVENTS: Models = (
    c.QueuedEvent,
    c.StartEvent,
    c.ChunkEvent,
    c.ResetEvent,
    c.CompleteEvent,
    c.ErrorEvent,
    c.CancelledEvent,
)
JOBS: Models = (c.Job, c.JobAccepted, c.JobPage, c.FeedEvent, StreamToken)
BATCHES: Models = (c.Batch, c.BatchAccepted, c.BatchPage, c.BatchProgress, c.OutputLine, c.ReplayEstimate)
WEBHOOKS: Models = (c.Redelivering, c.WebhookTest, c.EndpointList, c.WebhookEvent, c.BatchWebhookEvent)
RESPONSES: Models = (*JOBS, *EVENTS, *BATCHES, *WEBHOOKS, c.LaneList, c.PauseList, c.SchedulePage)
REQUESTS: Models = (c.ChatRequest, c.BatchRequest, c.ReplayFilter)
MESSAGES = ("SystemMessage", "UserMessage", "AssistantMessage", "ToolMessage")
MADE = "Made by tests/clients/generated.py from the contracts of the Python package (chatjobs/contracts/)."


def definitions(models: Iterable[type[BaseModel]], mode: JsonSchemaMode) -> dict[str, Schema]:
    """The JSON schemas of models and of all that they contain, by name; what is contained comes first."""
    found: dict[str, Schema] = models_json_schema([(model, mode) for model in models], by_alias=True)[1]["$defs"]
    ordered: dict[str, Schema] = {}

    def add(name: str) -> None:
        if name not in ordered and name != "JsonValue":
            for inner in re.findall(r'"#/\$defs/(\w+)"', json.dumps(found[name])):
                add(inner)
            ordered[name] = found[name]

    for name in found:
        add(name)
    return ordered


def classes() -> dict[str, type[Any]]:
    """The models and enumerations of the contracts by name."""
    rooms = [inspect.getmodule(model) for model in (*RESPONSES, *REQUESTS, c.TextPart, c.FunctionTool)]
    named = {name: one for room in [*rooms, statuses] for name, one in vars(room).items() if inspect.isclass(one)}
    return {name: one for name, one in named.items() if one.__module__.startswith(("chatjobs", "gateway"))}


# ------------------------------------------------------------------------------------------------- shapes


def shapes() -> str:
    """The text of src/shapes.js."""
    found = definitions(RESPONSES, "validation")
    known, exports = classes(), []
    for name, schema in found.items():
        if "properties" in schema:
            # Literal types of JSDoc cannot see through `object`, so each says what it makes.
            kind = f'/** @type {{import("./decode.js").Shape<import("../types/contracts.js").{name}>}} */'
            body = "".join(f"  {line},\n" for line in shape_fields(known[name], schema))
            more = ", true" if schema.get("additionalProperties") is True else ""
            exports.append(f'{kind}\nexport const {name} = object("{name}", {{\n{body}}}{more});')
        else:
            exports.append(f"export const {name} = {shape(schema)};")
    used = sorted(set(re.findall(r"\b([a-z]+)\b(?=[(,)\]])", "\n".join(exports))) & COMBINATORS | {"object"})
    named = "\n".join(textwrap.wrap(", ".join(used), 110, initial_indent="  ", subsequent_indent="  "))
    return "\n".join([f"// {MADE}", f'\nimport {{\n{named},\n}} from "./decode.js";\n', *exports, ""])


COMBINATORS = frozenset(
    (
        *("anything", "boolean", "either", "integer", "list", "nullable", "number"),
        *("object", "optional", "record", "string", "time", "usually", "word"),
    )
)


def shape_fields(model: type[BaseModel], schema: Schema) -> Iterator[str]:
    by_alias = {field.alias or name: field for name, field in model.model_fields.items()}
    for name, one in schema["properties"].items():
        field = by_alias[name]
        if field.exclude:  # the name of an event, which is not in its data
            continue
        value = shape(one)
        if field.exclude_if is not None:
            value = f"optional({value})"
        elif not field.is_required():
            default = json.dumps(field.get_default(), default=list)
            value = f"usually({value}, () => {f'({default})' if default == '{}' else default})"
        yield f"{name}: {value}"


def shape(schema: Schema) -> str:
    """The combinator of decode.js for a JSON schema."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2]).replace("JsonValue", "anything")
    if options := schema.get("anyOf") or schema.get("oneOf"):
        rest = [one for one in options if one.get("type") != "null"]
        inner = shape(rest[0]) if len(rest) == 1 else f"either({', '.join(map(shape, rest))})"
        return inner if len(rest) == len(options) else f"nullable({inner})"
    if "const" in schema or "enum" in schema:
        return f"word({', '.join(json.dumps(one) for one in schema.get('enum', [schema.get('const')]))})"
    match schema.get("type"):
        case "array":
            return f"list({shape(schema['items'])})"
        case "object":
            inner = schema.get("additionalProperties", True)
            return f"record({'anything' if inner is True else shape(inner)})"
        case "string":
            return "time" if schema.get("format") == "date-time" else "string"
        case "integer" | "number" | "boolean" as kind:
            return str(kind)
        case _:
            return "anything"


# -------------------------------------------------------------------------------------------------- types


def types() -> str:
    """The text of types/contracts.d.ts."""
    responses, requests = definitions(RESPONSES, "serialization"), definitions(REQUESTS, "validation")
    twice = {name for name in responses.keys() & requests.keys() if "properties" in requests[name]}
    parts = [f"// {MADE}\n// Times are texts as in RFC 3339; names are those of the wire.\n"]
    parts += [declaration(name, schema, "response", {}) for name, schema in responses.items()]
    renamed = {name: f"{name}Input" for name in twice}
    parts += [
        declaration(name, schema, "request", renamed)
        for name, schema in requests.items()
        if name in twice or name not in responses
    ]
    overlap = types_of(responses["Schedule"]["properties"]["overlap"], {})
    events = "".join(f"\n  | {event.__name__}" for event in EVENTS)
    parts += [
        alias("What happens at the time of a run while an earlier one has not ended.", "ScheduleOverlap", overlap),
        alias("One message of a conversation; `role` says which.", "Message", " | ".join(MESSAGES)),
        alias("Any event of a job's stream; `type` says which.", "StreamEvent", events),
    ]
    return "\n".join(parts)


def alias(text: str, name: str, kind: str) -> str:
    return f"{comment(text, '')}export type {name} ={'' if kind[0].isspace() else ' '}{kind};\n"


def declaration(name: str, schema: Schema, side: Literal["request", "response"], renamed: dict[str, str]) -> str:
    """The TypeScript type of a model or an enumeration."""
    known = classes()[name]
    head = f"{comment(inspect.getdoc(known) or '', '')}export "
    if "properties" not in schema:
        return f"{head}type {name} = {types_of(schema, renamed)};\n"
    documented, lines = attribute_docs(known), []
    for python_name, field in known.model_fields.items():
        alias = field.alias or python_name
        if field.exclude:
            lines.append(f"  type: {json.dumps(field.default)};\n")
            continue
        absent = field.exclude_if is not None if side == "response" else not field.is_required()
        kind = types_of(schema["properties"][alias], renamed)
        lines.append(comment(documented.get(python_name, ""), "  "))
        lines.append(f"  {key(alias)}{'?' if absent else ''}: {kind};\n")
    if schema.get("additionalProperties") is True:
        lines.append("  [further: string]: any;\n")
    return f"{head}interface {renamed.get(name, name)} {{\n{''.join(lines)}}}\n"


def key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name)


def types_of(schema: Schema, renamed: dict[str, str]) -> str:
    """The TypeScript type of a JSON schema."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return str(renamed.get(name, name)).replace("JsonValue", "any")
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(dict.fromkeys(types_of(one, renamed) for one in options))
    if "const" in schema or "enum" in schema:
        return " | ".join(json.dumps(one) for one in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array":
            inner = types_of(schema["items"], renamed)
            return f"{'(' if '|' in inner else ''}{inner}{')' if '|' in inner else ''}[]"
        case "object":
            inner = schema.get("additionalProperties", True)
            return f"Record<string, {'any' if inner is True else types_of(inner, renamed)}>"
        case "integer" | "number":
            return "number"
        case "string" | "boolean" | "null" as kind:
            return str(kind)
        case _:
            return "any"


def attribute_docs(model: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a model and of what it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not one.__module__.startswith(("chatjobs", "gateway")):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def comment(text: str, margin: str) -> str:
    """A JSDoc comment; the package's docstrings put code between two backticks."""
    if not text:
        return ""
    plain = " ".join(text.replace("``", "`").split()).replace("None", "null").replace("*/", "* /")
    lines = textwrap.wrap(plain, 116 - len(margin))
    if len(lines) == 1:
        return f"{margin}/** {lines[0]} */\n"
    return f"{margin}/**\n" + "".join(f"{margin} * {line}\n" for line in lines) + f"{margin} */\n"


FILES = {"src/shapes.js": shapes, "types/contracts.d.ts": types}


def write(home: Path = CLIENT) -> None:
    """Write the files."""
    for name, make in FILES.items():
        (home / name).write_text(make())


def write_types(modules: Path, target: Path = CLIENT / "types") -> None:
    """Write the declarations of the sources. ``modules`` has TypeScript and Node's types (tests/clients/node).

    Raises AssertionError, with what TypeScript complains of.
    """
    packages = modules / "node_modules"
    compiler = [program("node"), str(packages / "typescript" / "bin" / "tsc"), "-p", str(CLIENT)]
    options = ["--typeRoots", str(packages / "@types"), "--outDir", str(target)]
    done = subprocess.run([*compiler, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


if __name__ == "__main__":
    write()
    if "--types" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            write_types(installed(Path(folder), "the types are not made", source=Path(__file__).parent / "node"))
