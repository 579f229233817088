"""The routes: Mistral's, and those for tests under ``/sim``."""

from __future__ import annotations

import itertools
import uuid

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from simulator import refusals, wire
from simulator.access import authorized
from simulator.batch_routes import batch_routes
from simulator.calls import ChatCall
from simulator.dialects import SERVERS, Server
from simulator.faults import DirectiveError, Rule
from simulator.generation import Text, Thinking
from simulator.log import LogEntry
from simulator.player import Player
from simulator.refusals import Refused
from simulator.replies import Reply, refused
from simulator.state import Options, Simulator, describe

_SECRET_HEADERS = {"authorization", "cookie"}


class Completions:
    """``POST /v1/chat/completions``, as a bare ASGI application for speed."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        log = self._simulator.log
        entry = log.begin({name: value for name, value in request.headers.items() if name not in _SECRET_HEADERS})
        player = Player(scope, send, log, entry)
        try:
            reply, headers = self._accept(request, await request.body(), entry)
        except ClientDisconnect:
            log.end(entry, "client_gone")
        except Refused as error:
            log.described()
            await player.play(refused(error.refusal, self._usual.headers(str(uuid.uuid4()))), receive)
        else:
            log.described()
            player.pace(interval=reply.tempo.interval, split=reply.script.framing.split)
            await player.play(reply.steps(headers), receive)

    @property
    def _usual(self) -> Server:
        return SERVERS[self._simulator.options.dialect]

    def _accept(self, request: Request, body: bytes, entry: LogEntry) -> tuple[Reply, refusals.Headers]:
        """The reply, and the server's headers. Raises Refused."""
        if not authorized(request):
            raise Refused(refusals.unauthorized())
        try:
            call, unknown = ChatCall.lenient(body)
            server = self._simulator.serve(call)
            if unknown is not None and server.forbids_unknown_fields:
                raise Refused(refusals.invalid(unknown))
            describe(entry, call)
            refusal = server.refusal(call)
            if refusal is not None:
                raise Refused(refusal)
            allowance = self._simulator.allowance.spend(call.prompt_tokens)  # a real 429 is no scripted attempt
            headers = server.headers(str(uuid.uuid4())) | (allowance if server.has_allowance else {})
            return self._simulator.attempt(call, entry), headers
        except ValidationError as error:
            raise Refused(refusals.invalid(error)) from error
        except DirectiveError as error:
            raise Refused(refusals.error(400, str(error), "invalid_directive", None)) from error


class Routes:
    """The other handlers."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def models(self, request: Request) -> Response:
        if not authorized(request):
            refusal = refusals.unauthorized()
            return Response(refusal.body, refusal.status, refusal.headers)
        owner = SERVERS[self._simulator.options.dialect].owner
        return JSONResponse(wire.models(self._simulator.started, owner))

    async def health(self, request: Request) -> Response:
        entries = self._simulator.log.entries()
        return JSONResponse({"status": "ok", "open": sum(entry.outcome is None for entry in entries)})

    async def add_script(self, request: Request) -> Response:
        """Add the Rule in the body. The newest that matches a request applies."""
        try:
            self._simulator.rules.append(Rule.model_validate_json(await request.body()))
        except ValidationError as error:
            return Response(refusals.invalid(error).body, 422, media_type=wire.JSON_TYPE)
        return JSONResponse({"rules": len(self._simulator.rules)})

    async def drop_scripts(self, request: Request) -> Response:
        count = len(self._simulator.rules)
        self._simulator.rules.clear()
        return JSONResponse({"removed": count})

    async def requests(self, request: Request) -> Response:
        entries = self._simulator.log.entries(request.query_params.get("contains", ""))
        return JSONResponse([entry.as_json() for entry in entries])

    async def forget_requests(self, request: Request) -> Response:
        return JSONResponse({"removed": self._simulator.log.clear()})

    async def wait(self, request: Request) -> Response:
        """Wait until a request has got so far; 408 after the timeout."""
        try:
            awaited = _Awaited.model_validate(dict(request.query_params))
        except ValidationError as error:
            return Response(refusals.invalid(error).body, 422, media_type=wire.JSON_TYPE)
        log = self._simulator.log
        found = await log.wait(
            awaited.contains, awaited.requests, awaited.tokens, ended=awaited.ended, timeout=awaited.timeout
        )
        if found is not None:
            return JSONResponse(found.as_json())
        matching = [entry.as_json() for entry in log.entries(awaited.contains)]
        return JSONResponse({"error": "timeout", "matching": len(matching), "requests": matching[-3:]}, 408)

    async def release(self, request: Request) -> Response:
        """Release held answers to prompts that contain ``contains``, and do not hold later ones."""
        self._simulator.log.release(request.query_params.get("contains", ""))
        return JSONResponse({})

    async def answer(self, request: Request) -> Response:
        """The answer to a chat completion with this body, at once, without faults and without a log entry."""
        try:
            call, _ = ChatCall.lenient(await request.body())
            self._simulator.serve(call)
            script = self._simulator.script(call, spend=False)
        except (ValidationError, DirectiveError) as error:
            return JSONResponse({"error": str(error)}, 422)
        return JSONResponse(_answer_fields(self._simulator.reply(call, script, attempt=len(script.faults) + 1)))


class _Awaited(BaseModel):
    contains: str = ""
    requests: int = 1
    tokens: int = 0
    ended: bool = False
    timeout: float = 10


def _answer_fields(reply: Reply) -> dict[str, object]:
    pieces = list(itertools.islice(reply.generation.pieces(), 1_000_000))
    tokens = sum(piece.tokens for piece in pieces)
    texts = [piece.text for piece in pieces if isinstance(piece, Text)]
    reasoning = [piece.text for piece in pieces if isinstance(piece, Thinking)]
    return {
        "text": "".join(texts),
        "tokens": texts,
        "reasoning": "".join(reasoning),
        "finish_reason": reply.generation.reason,
        "usage": wire.usage(reply.call.prompt_tokens, tokens),
    }


def create_app(options: Options) -> Starlette:
    simulator = Simulator(options)
    routes = Routes(simulator)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", Completions(simulator), methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/healthz", routes.health),
            Route("/sim/script", routes.add_script, methods=["POST"]),
            Route("/sim/script", routes.drop_scripts, methods=["DELETE"]),
            Route("/sim/requests", routes.requests, methods=["GET"]),
            Route("/sim/requests", routes.forget_requests, methods=["DELETE"]),
            Route("/sim/wait", routes.wait),
            Route("/sim/release", routes.release, methods=["POST"]),
            Route("/sim/answer", routes.answer, methods=["POST"]),
            *(batch_routes(simulator) if options.dialect == "mistral" else ()),
        ]
    )
