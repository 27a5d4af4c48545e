"""The engine's standing with its control: declared, listened to and alive, over every restart of control.

A *session* is one OpenEngine, one stream for pulls, one stream of engine events and a heartbeat. When any part of
it breaks, the whole session is replaced; before anything else the new one asks for all that was under way.
"""

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeVar

from grpc import aio

from kvferry.core.errors import KvferryError, NotReady, RetryableError
from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.rpc.engine_life import LIFE_KEY
from kvferry.rpc.times import seconds_of
from kvferry.sdk.calls import control_error
from kvferry.sdk.log import sdk_log
from kvferry.sdk.pull_stream import PullStream
from kvferry.transfer.v1 import transfer_pb2

if TYPE_CHECKING:
    from kvferry.engine.v1.engine_pb2_grpc import EngineServiceAsyncStub

ATTEMPT_S = 5.0
"""Bound on one attempt to open the engine, and on a stream's first message."""
RESTORE_S = 5.0
"""How long a call waits for a restarted control to become ready."""
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 1.0
HEARTBEAT_CALL_MIN_S = 2.0
HEARTBEAT_INTERVAL_MIN_S = 0.05

if TYPE_CHECKING:
    _EventStream = aio.UnaryStreamCall[pb.WatchEngineRequest, pb.WatchEngineResponse]


class _Readable(Protocol):
    """A stream's messages, one after the other."""

    async def read(self) -> object:
        """The next message, or ``aio.EOF``."""


class LinkListener(Protocol):
    """Who is told what comes over the link."""

    def on_opened(self, opened: pb.OpenEngineResponse) -> None:
        """The engine is declared."""

    def on_up(self, up: bool) -> None:
        """The streams are in place, or broke."""

    def on_transfer(self, transfer: transfer_pb2.Transfer) -> None:
        """A state of a transfer that nobody waits for as an answer: mostly its end."""

    def on_event(self, event: pb.WatchEngineResponse) -> None:
        """Something the engine must know."""

    async def repair(self) -> None:
        """Ask for what may have been missed."""


class EngineLink:
    """Keeps one engine declared at one control."""

    def __init__(
        self,
        engines: "EngineServiceAsyncStub",
        pulls: PullStream,
        request: pb.OpenEngineRequest,
        where: str,
        listener: LinkListener,
    ) -> None:
        self._engines = engines
        self._pulls = pulls
        self._request = request
        self._where = where
        self._listener = listener
        self._log = sdk_log(engine=request.engine_id, control=where)
        self._last_error: KvferryError | None = None
        self._stopped = False
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the first session is in place; fails with what makes it impossible."""

    async def open(self, timeout_s: float) -> None:
        """Declare the engine.

        Raises:
            KvferryError: control refused, or could not be reached within ``timeout_s``.
        """
        try:
            opened = await self._engines.OpenEngine(self._request, timeout=timeout_s, wait_for_ready=True)
        except aio.AioRpcError as error:
            raise control_error(error, self._where) from error
        self._request.again = True
        self._listener.on_opened(opened)
        self._interval_s = max(seconds_of(opened.heartbeat_interval), HEARTBEAT_INTERVAL_MIN_S)

    async def restore(self, timeout_s: float) -> None:
        """Declare the engine again to a control that may have restarted just now, and lack its data planes yet.

        Raises:
            KvferryError: control refused; NotReady when it did not become ready within ``timeout_s`` or ``RESTORE_S``.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(timeout_s, RESTORE_S)
        pause = PAUSE_MIN_S
        while True:
            try:
                return await self.open(max(deadline - loop.time(), PAUSE_MIN_S))
            except NotReady:
                if deadline - loop.time() <= pause:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)

    async def wait_first(self, timeout_s: float) -> None:
        """Return when the first session is in place.

        Raises:
            KvferryError: control refused the engine; NotReady when it could not be reached within ``timeout_s``.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.first
        except TimeoutError:
            why = "" if self._last_error is None else f": {self._last_error.message}"
            raise NotReady(
                f"control at {self._where} was not ready within {timeout_s:g} s{why}",
                metadata={"endpoint": self._where},
            ) from self._last_error

    def stop(self) -> None:
        """End with the session that is cancelled next.

        Cancelling alone is not enough: before Python 3.13 a TaskGroup whose child fails at that moment swallows it.
        """
        self._stopped = True

    async def run(self) -> None:
        """Hold one session after the other, until stopped and cancelled."""
        loop = asyncio.get_running_loop()
        pause = PAUSE_MIN_S
        while not self._stopped:
            started = loop.time()
            try:
                await self._session()
            except* aio.AioRpcError as broken:
                self._broken(control_error(_first_of(broken, aio.AioRpcError), self._where))
            except* KvferryError as broken:
                self._broken(_first_of(broken, KvferryError))
            lasted = loop.time() - started
            pause = PAUSE_MIN_S if lasted > ATTEMPT_S else min(2 * pause, PAUSE_MAX_S)
            if not self._stopped:
                await asyncio.sleep(pause)

    async def _session(self) -> None:
        await self.open(ATTEMPT_S)
        pulls = self._engines.Pull(metadata=((LIFE_KEY, self._request.life.hex()),))
        events = self._engines.WatchEngine(pb.WatchEngineRequest(engine_id=self._request.engine_id))
        try:
            await _first_message(pulls, "Pull")
            await _first_message(events, "WatchEngine")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pulls.hold(pulls, self._listener.on_transfer))
                tasks.create_task(self._read_events(events))
                if self._request.HasField("layout"):
                    tasks.create_task(self._heartbeat())
                tasks.create_task(self._listener.repair())
                self._in_place()
        finally:
            self._listener.on_up(False)
            pulls.cancel()
            events.cancel()

    def _in_place(self) -> None:
        self._listener.on_up(True)
        if not self.first.done():
            self.first.set_result(None)
        elif self._last_error is not None:
            self._log.info("control is back")
        self._last_error = None

    def _broken(self, error: KvferryError) -> None:
        if self._last_error is None or self._last_error.reason is not error.reason:
            self._log.warning("session with control broke", error=str(error))
        self._last_error = error
        if not self.first.done() and not isinstance(error, RetryableError):
            self.first.set_exception(error)

    async def _read_events(self, stream: "_EventStream") -> None:
        while isinstance(message := await stream.read(), pb.WatchEngineResponse):
            self._listener.on_event(message)
        raise NotReady("control ended the stream of engine events")

    async def _heartbeat(self) -> None:
        """Only of an engine that declared itself: who merely looks is no sign of its life."""
        request = pb.HeartbeatRequest(engine_id=self._request.engine_id)
        while True:
            await asyncio.sleep(self._interval_s)
            await self._engines.Heartbeat(request, timeout=max(self._interval_s, HEARTBEAT_CALL_MIN_S))


async def _first_message(stream: _Readable, method: str) -> None:
    """Wait for the message that says that the stream is in place."""
    try:
        async with asyncio.timeout(ATTEMPT_S):
            message = await stream.read()
    except TimeoutError:
        raise NotReady(f"control did not answer {method} within {ATTEMPT_S:g} s") from None
    if message is aio.EOF:
        raise NotReady(f"control ended {method} at once")


_Error = TypeVar("_Error", bound=Exception)


def _first_of(group: BaseExceptionGroup[_Error], kind: type[_Error]) -> _Error:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, kind)
    return found
