"""An event loop in a background thread, in which other threads run coroutines. For sync.py."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import queue
import socket
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any, Final, Generic, TypeVar

R = TypeVar("R")
T = TypeVar("T")

LOOK_SECONDS: Final = 1.0
"""The longest that a waiting thread sleeps: on Windows a Ctrl-C is noticed only between two sleeps."""
END_SECONDS: Final = 5.0
"""The longest wait for the end of calls that were cancelled, of a portal that is closed, and so of the interpreter."""
TAKING_SECONDS: Final = 0.01
"""Values are taken from a caller's iterable for so long at a time, if they are taken in groups."""

CLOSED: Final = "this client is closed: make a new one"
INSIDE: Final = (
    "a synchronous call was made where it would wait for itself: in code that the client runs in its own event loop, "
    "such as an async iterable of prompts; use AsyncChatJobs there"
)


class PortalClosed(RuntimeError):
    """The client was closed, before a call or during it."""


class Caller:
    """The thread that waits for a call: the call can ask for pieces of the caller's code to be run there.

    So an iterable of prompts, or a callback, runs in the thread that it belongs to (that of a database connection, say)
    and may itself use the client.
    """

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | _Running[Any]] = queue.SimpleQueue()

    async def run(self, work: Callable[[], R]) -> R:
        """The result of ``work``, which runs in the caller's thread as soon as that waits. Raises what it raises."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[R] = loop.create_future()

        def answer(settle: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(lambda: None if reply.done() else settle())

        def perform() -> None:
            try:
                result = work()
            except StopIteration:  # a Future cannot hold it
                answer(partial(reply.set_exception, RuntimeError("a callback raised StopIteration")))
            except Exception as error:  # noqa: BLE001 -- raised again, in the call
                answer(partial(reply.set_exception, error))
            else:
                answer(partial(reply.set_result, result))

        self._inbox.put(perform)
        return await reply

    def ended(self, call: _Running[Any]) -> None:
        """A call that this thread waits for has ended."""
        self._inbox.put(call)

    def wait(self, call: _Running[R], alive: Callable[[], bool]) -> R:
        """The result of a call, once it has ended. Raises what it raises, and PortalClosed if its loop is not alive."""
        while True:
            running = alive()  # before the look: what came before the end is there
            try:
                message = self._inbox.get(timeout=LOOK_SECONDS if running else 0)
            except queue.Empty:
                if not running:
                    raise PortalClosed(CLOSED) from None
                continue
            if message is call:
                return call.result()
            if not isinstance(message, _Running):  # else: a call that was interrupted earlier
                message()

    def wait_for_end(self, call: _Running[Any]) -> None:
        """Wait until a call that was cancelled has ended, for END_SECONDS at the most; nothing is run for it."""
        deadline = monotonic() + END_SECONDS
        with contextlib.suppress(queue.Empty):
            while self._inbox.get(timeout=max(deadline - monotonic(), 0)) is not call:
                pass


class CallersIterable(Generic[T]):
    """An iterable of the caller's as an async one: it is iterated over in the caller's thread.

    ``group`` is the most values that are taken at a time.
    """

    def __init__(self, values: Iterable[T], caller: Caller, group: int) -> None:
        self._values = values
        self._caller = caller
        self._group = group

    async def __aiter__(self) -> AsyncIterator[T]:
        iterator = await self._caller.run(partial(iter, self._values))
        while taken := await self._caller.run(partial(self._take, iterator)):
            for value in taken:
                yield value

    def _take(self, iterator: Any) -> Sequence[T]:
        taken: list[T] = []
        deadline = monotonic() + TAKING_SECONDS
        for value in iterator:
            taken.append(value)
            if len(taken) >= self._group or monotonic() >= deadline:
                break
        return taken


class CallersCollection(CallersIterable[T]):
    """The same of an iterable that has a length, and can be iterated over several times."""

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # it has one

    def __iter__(self) -> Any:
        raise TypeError("iterate asynchronously")

    def __contains__(self, value: object) -> bool:
        return value in self._values  # type: ignore[operator]  # as every collection


class _Running(Generic[R]):
    """One coroutine that runs in a portal for a caller. All but ``result`` runs in the portal's thread."""

    def __init__(self, make: Callable[[], Awaitable[R]], caller: Caller) -> None:
        self._make = make
        self._caller = caller
        self._task: asyncio.Task[R] | None = None
        self._refused = False

    def start(self) -> None:
        """Start the coroutine, unless it was interrupted before."""
        if not self._refused:
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._ended)

    async def _run(self) -> R:
        return await self._make()

    def _ended(self, task: asyncio.Task[R]) -> None:
        if not task.cancelled():
            task.exception()  # it counts as retrieved, if the caller does not wait any more
        self._caller.ended(self)

    def interrupt(self) -> None:
        """Cancel the coroutine."""
        if self._task is None:
            self._refused = True
            self._caller.ended(self)
        else:
            self._task.cancel()

    def result(self) -> R:
        """Raises what the coroutine raised, and PortalClosed if it was cancelled."""
        task, self._task = self._task, None  # an exception's traceback would hold itself
        if task is None or task.cancelled():
            raise PortalClosed("this client was closed during the call")
        return task.result()


class _Threads(ThreadPoolExecutor):
    """The event loop's threads for blocking calls. A look-up of a name gets a daemon thread: it is possible when the
    main thread has ended and others go on, and when it hangs it does not hold up the interpreter's end."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """The result of ``fn``, which runs in a thread."""
        if fn is not socket.getaddrinfo:
            return super().submit(fn, *args, **kwargs)
        future: Future[R] = Future()

        def look_up() -> None:
            try:
                found = fn(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 -- raised again where the result is used
                future.set_exception(error)
            else:
                future.set_result(found)

        future.set_running_or_notify_cancel()
        threading.Thread(target=look_up, name="chatjobs-names", daemon=True).start()
        return future


class Portal:
    """An event loop in a daemon thread. ``closing`` runs in it at the end, when all calls have been cancelled.

    A portal works in the process that made it. At the end of the interpreter all portals are closed.
    """

    def __init__(self, closing: Callable[[], Awaitable[None]]) -> None:
        self.pid = os.getpid()
        self._closing = closing
        self._stopping = False
        self.opened: weakref.WeakSet[AsyncGenerator[Any]] = weakref.WeakSet()
        """Generators that callers iterate over. They are closed at the end, and with them those that they iterate over,
        which would fail if all were closed together."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_Threads(thread_name_prefix="chatjobs-files"))
        self._thread = threading.Thread(target=self._serve, name="chatjobs", daemon=True)
        self._thread.start()
        _portals.add(self)

    def run(self, make: Callable[[], Awaitable[R]], caller: Caller | None = None) -> R:
        """The result of a coroutine, which runs in the portal with the caller's context. Raises what it raises.

        What interrupts the wait (KeyboardInterrupt) cancels the coroutine. Raises PortalClosed, and RuntimeError in the
        portal's own thread.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(INSIDE)
        caller = caller or Caller()
        call = _Running(make, caller)
        try:
            self._loop.call_soon_threadsafe(self._start, call, context=contextvars.copy_context())
        except RuntimeError:
            raise PortalClosed(CLOSED) from None
        try:
            return caller.wait(call, self._thread.is_alive)
        except Exception:
            raise  # the coroutine's own: the caller's code reports its errors to the coroutine
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call.interrupt)
                caller.wait_for_end(call)
            raise

    def stop(self) -> None:
        """Begin to end, without waiting: it may be called anywhere, also while garbage is collected."""
        if self.pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stop)

    def close(self) -> None:
        """End all calls and the thread; waits for that, for END_SECONDS at the most."""
        self.stop()
        if self.pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join(END_SECONDS)

    def _start(self, call: _Running[Any]) -> None:
        if self._stopping:
            call.interrupt()
        else:
            call.start()

    def _stop(self) -> None:
        if not self._stopping:  # a second time it would stop the end
            self._stopping = True
            self._loop.stop()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()

    async def _end(self) -> None:
        own = asyncio.current_task()
        while tasks := [task for task in asyncio.all_tasks() if task is not own]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await asyncio.gather(*(generator.aclose() for generator in list(self.opened)), return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._closing()


_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before the interpreter takes threads and modules apart, under which a running loop would break."""
    for portal in list(_portals):
        portal.stop()
    for portal in list(_portals):
        portal.close()
