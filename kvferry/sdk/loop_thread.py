"""One event loop in a background thread, shared by every synchronous client of the process.

Shared, because gRPC's asynchronous side works best with one event loop for each process.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, TypeVar

from kvferry.core.errors import NotReady

CANCEL_S = 10.0
"""How long an interrupted call waits for the end of its cancellation."""

_Result = TypeVar("_Result")
_Client = TypeVar("_Client")


class LoopThread:
    """The thread and its loop."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _shared: ClassVar["LoopThread | None"] = None

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon, so that it does not keep the process from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvferry-sdk", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> "LoopThread":
        """The one thread, started for its first user.

        It stays until the process ends: gRPC may still have events for a loop whose last client is closed, and loses
        other loops' events with them when that loop is gone.
        """
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine on the loop and wait for it.

        An interrupt (Ctrl-C) while waiting cancels the coroutine and waits, bounded, until it has ended.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise NotReady("a synchronous client cannot be used on its own event loop, for example in a callback")
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                concurrent.futures.wait([future], CANCEL_S)
            raise

    def start(self, work: Coroutine[Any, Any, _Result]) -> concurrent.futures.Future[_Result]:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)


class Hosted:
    """An asynchronous context manager, entered and left by one task on the loop."""

    def __init__(self, thread: LoopThread, client: AbstractAsyncContextManager[object]) -> None:
        self._thread = thread
        self._entered: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._leave: asyncio.Event | None = None
        self._host = thread.start(self._live(client))

    def wait_entered(self) -> None:
        """Return once it is entered; raises what entering raised."""
        try:
            self._entered.result()
        except BaseException:
            self._host.cancel()
            raise

    def leave(self) -> None:
        """Leave it; raises what leaving raised."""
        self._thread.call(self._set_leave())
        self._host.result()

    async def _set_leave(self) -> None:
        if self._leave is not None:
            self._leave.set()

    async def _live(self, client: AbstractAsyncContextManager[object]) -> None:
        self._leave = asyncio.Event()
        try:
            async with client:
                self._entered.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if not self._entered.done():
                self._entered.set_exception(error)
                return
            raise
