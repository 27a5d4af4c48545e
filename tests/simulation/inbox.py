"""What arrives at one end of a simulated call, and how it ended."""

import asyncio
from collections import deque
from collections.abc import Sequence

import grpc
from grpc import aio

from tests.simulation.virtual_loop import CURRENT, Process

Status = tuple[grpc.StatusCode, str, Sequence[tuple[str, str | bytes]]]
OK: Status = (grpc.StatusCode.OK, "", ())


def this_process() -> Process:
    """The process whose code runs."""
    process = CURRENT.get()
    assert process is not None
    return process


class Inbox:
    """Messages that arrived at one end of a call, and how it ended."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self._messages: deque[bytes] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def put(self, message: bytes) -> None:
        """A message has arrived."""
        self._messages.append(message)
        self.wake()

    def end(self, status: Status) -> None:
        """No more will come."""
        if self.status is None:
            self.status = status
        self.wake()

    def wake(self) -> None:
        """Have everybody look again who waits."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)

    async def take(self) -> bytes | None:
        """The next message; None once there are no more."""
        while not self._messages:
            if self.status is not None:
                return None
            await self.changed()
        return self._messages.popleft()

    async def changed(self) -> None:
        """Wait until something has arrived."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting


def failure(status: Status) -> aio.AioRpcError:
    """How a client is told."""
    code, details, trailing = status
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailing), details)
