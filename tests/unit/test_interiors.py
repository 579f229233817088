"""Libraries that are used where they are not public (docs/decisions/0023 and 0025): a change of them is noticed."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import StaticPool

from storage.engine.sync_transaction import transaction
from tests.unit.test_house import ROOMS, ROOT, sources

INTERIORS = {
    "mistralai.client._hooks.sdkhooks": "70f504e7a01d54b0647bb4c2b443f7a8c90ad0692ba2828ca9225cbd3cda7ea4",
    "mistralai.client._hooks.types": "0333521388af8c9309773f2b155619a8ada8435f593698abec28ac2598fd0672",
    "mistralai.client.basesdk": "5352a57db6e687811e3a5042c9bdf60ec34f515168028a10fe72783c743227ee",
    "typer._click.core": "63975bc8725ffd570364ac6de0584fd0be6c4b0bc2f0ecac00a0a478a55b9c48",
    "typer._click.exceptions": "cac64a7acbddfbb2a8a027f54144757f1060633d0858d68ff78513496bdffb21",
    "uvicorn._types": "94e0216182e9d2fb192b2261b3ba55c2afb11efe24997ac4f2b95d1d0a2b21b4",
    "uvicorn.protocols.http.httptools_impl": "1d4e1c579df4168433a61a01f10c628b31c1790e72dd9769d2b8633b22214033",
}
"""SHA-256 of each module's source file, of the version in the lock file."""


@pytest.mark.parametrize("module", INTERIORS)
def test_it_is_the_file_that_was_read(module: str) -> None:
    """If not: read what has changed in it, compare it with what we use of it, then write the new digest down."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest() == INTERIORS[module]


def test_no_other_private_module_is_imported() -> None:
    known = {module.rpartition(".")[0] if "_hooks" in module else module for module in INTERIORS}
    private = {}
    for path in [*sources(*ROOMS), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            if module and any(part.startswith("_") and part != "__future__" for part in module.split(".")):
                private[module] = str(path.relative_to(ROOT))
    assert set(private) <= known, private


async def test_the_connection_for_writes_is_like_sqlalchemys() -> None:
    """It is cast to AsyncConnection (docs/decisions/0025), so mypy does not compare the two."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with ThreadPoolExecutor(1) as executor:
        async with transaction(engine, executor, 5.0) as connection:
            ours = {name: value for name, value in vars(type(connection)).items() if not name.startswith("_")}
    assert set(ours) == {"execute", "scalar", "run_sync"}
    for name, method in ours.items():
        theirs = getattr(AsyncConnection, name)
        assert inspect.iscoroutinefunction(method)
        assert inspect.iscoroutinefunction(theirs)
        assert parameters(theirs)[: len(parameters(method))] == parameters(method)


def parameters(method: Callable[..., Any]) -> list[tuple[Any, Any]]:
    return [(one.kind, one.default) for one in inspect.signature(method).parameters.values()]
