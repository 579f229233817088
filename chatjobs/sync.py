"""The parts of a synchronous client: it runs the asynchronous one in a background thread (portal.py).

A twin has the methods of an asynchronous class, made by ``call``, ``items`` and ``stream`` from its methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, Self, TypeVar, cast

from pydantic import BaseModel

from chatjobs.portal import CLOSED, Caller, CallersCollection, CallersIterable, Portal, PortalClosed
from chatjobs.stream import Stream

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

END: Final[Any] = object()


class Closable(Protocol):
    """An asynchronous client."""

    async def aclose(self) -> None:
        """Close all connections."""
        ...


C = TypeVar("C", bound=Closable)


# ------------------------------------------------------------------------------------------------ bridge

_starting = threading.Lock()
"""Held while a portal begins."""


def _after_fork() -> None:
    global _starting  # in the parent another thread may have held it
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class Bridge(Generic[C]):
    """The asynchronous clients behind a synchronous one, made when they are used: one that runs in a portal, and one
    for code in an event loop.

    After a fork the child makes its own: a thread does not live on there, and connections cannot be shared. ``make``
    makes an asynchronous client; what it raises is raised here.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._unused: C | None = make()
        self._portal: tuple[Portal, C] | None = None
        self._asynchronous: C | None = None
        self._closed = False
        self.synchronous = False
        """Whether it is used synchronously also where an event loop runs."""

    def asynchronous(self) -> C | None:
        """The client for code in an event loop, if the caller is such; None if the caller is synchronous."""
        return None if self.synchronous or not _in_event_loop() else self.in_loop()

    def in_loop(self) -> C:
        """The client for code in an event loop. Raises PortalClosed."""
        if self._asynchronous is None:
            if self._closed:
                raise PortalClosed(CLOSED)
            self._asynchronous = self._new()
        return self._asynchronous

    def portal(self) -> tuple[Portal, C]:
        """The portal of this process and the client that runs in it. Raises PortalClosed."""
        found = self._portal
        if found is None or found[0].pid != os.getpid():
            with _starting:
                found = self._portal
                if found is None or found[0].pid != os.getpid():
                    if self._closed:
                        raise PortalClosed(CLOSED)
                    client = self._new()
                    found = self._portal = Portal(client.aclose), client
                    weakref.finalize(self, found[0].stop).atexit = False  # portal.py does that, and waits
        if self._closed:
            raise PortalClosed(CLOSED)
        return found

    def close(self) -> None:
        """End what runs in the portal, and the portal."""
        if self._asynchronous is not None and _in_event_loop() and not self.synchronous:
            raise RuntimeError("this client was used in an event loop: await jobs.aclose()")
        self._closed = True
        if self._portal is not None:
            self._portal[0].close()

    async def aclose(self) -> None:
        """Close the client for code in an event loop, and the portal."""
        self._closed = True
        if self._asynchronous is not None:
            await self._asynchronous.aclose()
        if self._portal is not None:
            await asyncio.to_thread(self._portal[0].close)

    def _new(self) -> C:
        made, self._unused = self._unused, None
        return made or self._make()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# ------------------------------------------------------------------------------------------------- twins


class Twin:
    """A synchronous class: its methods run those of ``of(client)``, an object of an asynchronous class."""

    def __init__(self, bridge: Bridge[Any], of: Callable[[Any], Any]) -> None:
        self._bridge = bridge
        self._of = of


def call(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], *, lends: str = ""
) -> Callable[Concatenate[Any, P], R]:
    """The synchronous method for a coroutine method. ``lends`` names a parameter whose iterable runs in the caller's
    thread."""

    def run(twin: Twin, /, *args: Any, **kwargs: Any) -> Any:
        if (client := twin._bridge.asynchronous()) is not None:
            return method(twin._of(client), *args, **kwargs)
        portal, client = twin._bridge.portal()
        caller = Caller()
        if lends:
            args, kwargs = _lent(method, {lends: 10_000}, caller, args, kwargs)
        return portal.run(lambda: method(twin._of(client), *args, **kwargs), caller)

    made: Callable[Concatenate[Any, P], R] = _like(method, run)
    return made


def items(
    method: Callable[Concatenate[Any, P], AsyncIterator[T]], *, lends: Collection[str] = ()
) -> Callable[Concatenate[Any, P], SyncIterator[T]]:
    """The synchronous method for an async generator method. ``lends`` names parameters whose iterables and callbacks
    run in the caller's thread."""

    def run(twin: Twin, /, *args: Any, **kwargs: Any) -> Any:
        if (client := twin._bridge.asynchronous()) is not None:
            return method(twin._of(client), *args, **kwargs)
        portal, client = twin._bridge.portal()
        caller = Caller()
        if lends:
            args, kwargs = _lent(method, dict.fromkeys(lends, 1), caller, args, kwargs)
        values = method(twin._of(client), *args, **kwargs)
        return SyncIterator(twin._bridge, portal, caller, cast(AsyncGenerator[T], values))

    made: Callable[Concatenate[Any, P], SyncIterator[T]] = _like(method, run, "SyncIterator")
    return made


def stream(method: Callable[Concatenate[Any, P], Stream[T]]) -> Callable[Concatenate[Any, P], SyncStream[T]]:
    """The synchronous method for one that returns a Stream."""

    def run(twin: Twin, /, *args: Any, **kwargs: Any) -> Any:
        if (client := twin._bridge.asynchronous()) is not None:
            return method(twin._of(client), *args, **kwargs)
        portal, client = twin._bridge.portal()
        return SyncStream(twin._bridge, portal, method(twin._of(client), *args, **kwargs))

    made: Callable[Concatenate[Any, P], SyncStream[T]] = _like(method, run, "SyncStream")
    return made


def constructor(
    method: Callable[Concatenate[Any, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """A decorator: the constructor has the parameters of ``method``, and its docstring."""
    return partial(_like, method)


def _like(method: Callable[..., Any], run: Callable[..., Any], returns: str | None = None) -> Any:
    """``run`` with the name, docstring and signature of ``method``, but for the type that it returns an instance of."""
    functools.update_wrapper(run, method)
    if returns is not None:
        signature = inspect.signature(method)
        _, _, of = str(signature.return_annotation).partition("[")
        run.__signature__ = signature.replace(return_annotation=f"{returns}[{of}")  # type: ignore[attr-defined]
    return run


def _lent(
    method: Callable[..., Any], lends: Mapping[str, int], caller: Caller, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, of which those named in ``lends`` run in the caller's thread.

    ``lends``: how many values of an iterable are taken at a time.
    """
    bound = inspect.signature(method).bind(None, *args, **kwargs)
    for name, group in lends.items():
        if bound.arguments.get(name) is not None:
            bound.arguments[name] = _in_thread_of(caller, bound.arguments[name], group)
    return bound.args[1:], bound.kwargs


def _in_thread_of(caller: Caller, value: Any, group: int) -> Any:
    """A callback or an iterable whose code runs in the caller's thread. What runs no code of the caller's is itself."""
    harmless = isinstance(value, (str, bytes, list, tuple, Mapping, BaseModel, os.PathLike)) or hasattr(value, "read")
    if not harmless and isinstance(value, Iterable):
        return (CallersCollection if isinstance(value, Collection) else CallersIterable)(value, caller, group)
    if not harmless and callable(value):
        return lambda given: caller.run(partial(value, given))
    return value


# --------------------------------------------------------------------------------------------- iterators


class SyncIterator(Iterator[T]):
    """Values that arrive one by one. Iterate once; the end of the loop, or a ``break``, closes the connection, as do
    ``close``, the end of a ``with``, and garbage collection."""

    def __init__(self, bridge: Bridge[Any], portal: Portal, caller: Caller, source: AsyncGenerator[T]) -> None:
        self._bridge = bridge  # lives as long as this, and the portal with it
        self._portal = portal
        self._caller = caller
        self._source: AsyncGenerator[T] | None = source
        self._receiving: asyncio.Task[Any] | None = None

    def __iter__(self) -> Iterator[T]:
        try:
            while (value := self._next()) is not END:
                yield value
        finally:
            # A loop that is left drops this generator, and so the source, which its event loop closes: nobody waits.
            self._source = None

    def __next__(self) -> T:
        if (value := self._next()) is END:
            raise StopIteration
        return cast(T, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Where another thread waits for the next value, there is none."""
        if (source := self._source) is not None and self._portal.pid == os.getpid():
            self._source = None
            with contextlib.suppress(PortalClosed):
                self._portal.run(partial(self._close, source))

    def _next(self) -> Any:
        """The next value, or END."""
        if (source := self._source) is None:
            return END
        if self._portal.pid != os.getpid():
            raise RuntimeError("this was opened before a fork, in the parent process: open it again")
        return self._portal.run(partial(self._receive, source), self._caller)

    async def _receive(self, source: AsyncGenerator[T]) -> Any:
        if self._receiving is not None:
            raise RuntimeError("another thread waits for the next value already")
        self._receiving = asyncio.current_task()
        self._portal.opened.add(source)
        try:
            return await anext(source, END)
        except asyncio.CancelledError:
            if self._source is None:
                return END  # it was closed
            raise
        finally:
            self._receiving = None

    async def _close(self, source: AsyncGenerator[T]) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait([self._receiving])
        await source.aclose()


class SyncStream(SyncIterator[T]):
    """The events of a job or batch: ``for event in stream``, once.

    ``last_event_id`` is the id of the last event that the loop received; give it to ``ChatJobs.stream`` or
    ``SyncBatchCalls.watch`` to continue in another process. Iterating raises what iterating over a Stream raises.
    """

    def __init__(self, bridge: Bridge[Any], portal: Portal, stream: Stream[T]) -> None:
        super().__init__(bridge, portal, Caller(), cast(AsyncGenerator[T], aiter(stream)))
        self._stream = stream

    @property
    def last_event_id(self) -> str:
        """The id of the last event that the loop received."""
        return self._stream.last_event_id
