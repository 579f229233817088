"""The check for unknown query parameters, which are refused: a misspelt filter would otherwise match everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request

from chatjobs.errors import Problem
from gateway.auth.access import Identity
from gateway.dependencies import identity
from gateway.problems import HttpProblem

READ_BY_HAND = {
    "/api/jobs": ("metadata.",),
    "/api/jobs/{job_id}/events": ("lastEventId", "token"),
    "/api/batches/{batch_id}/events": ("lastEventId",),
    "/api/feed": ("lastEventId",),
    "/api/events": ("lastEventId",),
}
"""Parameters that routes read without declaring them to FastAPI. A name that ends with a dot is a prefix."""


class Parameters:
    """The parameter names of each route, cached."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], frozenset[str]] = {}

    async def check(self, request: Request, _: Annotated[Identity, Depends(identity)]) -> None:
        """FastAPI dependency, evaluated after authentication. Raises HttpProblem."""
        if not request.scope["query_string"]:
            return
        names = self._names_of(request.scope["route"])
        given = [name for name, _ in request.query_params.multi_items()]
        unknown = [name for name in given if names.isdisjoint((name, f"{name.partition('.')[0]}."))]
        wrong = [Problem(f"/{name}", "There is no such parameter") for name in unknown]
        twice = {name for name in given if given.count(name) > 1} if len(given) <= len(names) * 2 + 32 else set(given)
        wrong += [Problem(f"/{name}", "It may be given once") for name in sorted(twice)]
        if wrong:
            raise HttpProblem(422, "validation_failed", "The parameters are not valid", errors=wrong[:20])

    def _names_of(self, route: APIRoute) -> frozenset[str]:
        key = (route.path, "".join(sorted(route.methods or ())))
        if key not in self._names:
            self._names[key] = frozenset((*_declared(route.dependant), *READ_BY_HAND.get(route.path, ())))
        return self._names[key]


def _declared(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _declared(inner)
