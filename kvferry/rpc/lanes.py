"""Lanes: the messages of a gRPC stream over a plain Unix socket beside it, where both ends share a host.

A message on a gRPC stream wakes three threads one after the other before it reaches the event loop; one on a plain
socket wakes the loop itself. So a server offers a lane for a stream, in the stream's initial metadata; a client that
reaches the socket shows the offer's token there, and from then on both sides send on the lane. The stream stays open:
it tells whether the other side lives, and how the session ended. Where no lane can be had, it carries the messages.

A frame is a message preceded by its length as 4 bytes, little endian. A client's first frame is the token; the server's
first is empty, and says that the lane is in place.
"""

import asyncio
import os
import secrets
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import structlog
from grpc import aio

from kvferry.core.errors import AddressInUse
from kvferry.rpc.options import MESSAGE_BYTES_MAX

LANE_SOCKET_SUFFIX = ".lane"
OFFER_S = 0.5
"""How long a client waits for an offer, and for the answer to its token."""
TOKEN_S = 2.0
"""How long a connection may take to show its token."""
STRANGERS_MAX = 64
"""Connections that have not shown a token yet."""
TOKEN_BYTES = 16
_SOCKET_KEY, _TOKEN_KEY, _NETWORK_KEY = "kvferry-lane-socket-bin", "kvferry-lane-token-bin", "kvferry-lane-network-bin"
_LENGTH = struct.Struct("<I")

Take = Callable[[bytes], None]
"""Called with each message that comes, in order."""

_log = structlog.get_logger("kvferry.rpc.lanes")


class Lane(asyncio.Protocol):
    """One end. Nothing is read before :meth:`begin`."""

    def __init__(
        self,
        on_first: "Callable[[Lane, bytes], None]",
        on_lost: "Callable[[Lane], None]" = lambda _: None,
        on_passed: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_first`` is called with the first frame, once; ``on_lost`` when the connection has ended; ``on_passed``
        whenever something was sent or has come.
        """
        self._on_lost = on_lost
        self._on_passed = on_passed
        self._on_first: Callable[[Lane, bytes], None] | None = on_first
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._take: Take | None = None
        self._on_end: Callable[[], None] = _nothing
        self._on_writable: Callable[[], None] = _nothing
        self._ended = asyncio.Event()
        self.is_open = False
        self.is_writable = False
        """Whether it is open and the other side keeps up; what is sent to one that does not is kept."""

    def begin(self, take: Take, on_end: Callable[[], None], on_writable: Callable[[], None] = lambda: None) -> None:
        """Read from now on. ``on_end`` is called once, when the connection has ended; at once if it has already."""
        self._take, self._on_end, self._on_writable = take, on_end, on_writable
        if self._transport is None or not self.is_open:
            on_end()
            return
        self._deliver()
        if self.is_open:
            self._transport.resume_reading()

    def send(self, messages: Iterable[bytes]) -> None:
        """Send messages, each in a frame; they are lost if the lane ends."""
        if self._transport is not None and self.is_open:
            parts: list[bytes] = []
            for message in messages:
                parts += _LENGTH.pack(len(message)), message
            self._transport.write(b"".join(parts))
            self._on_passed()

    async def wait_ended(self, seconds: float) -> None:
        """Wait, at most so long, until the other side has ended the connection and all that it sent was taken."""
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            _log.warning("a lane did not end with its stream")

    def close(self) -> None:
        """End the connection, once what was sent is on its way."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        # No isinstance: the transports of other event loops, such as uvloop's, derive from no class of asyncio.
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = self.is_writable = True

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        self.is_open = self.is_writable = False
        self._ended.set()
        self._on_lost(self)
        self._on_end()

    def pause_writing(self) -> None:
        """asyncio's."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """asyncio's."""
        self.is_writable = self.is_open
        self._on_writable()

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        self._received += data
        self._on_passed()
        self._deliver()

    def _deliver(self) -> None:
        while self._received and (frame := self._next_frame()) is not None:
            if self._on_first is not None:
                on_first, self._on_first = self._on_first, None
                assert self._transport is not None
                self._transport.pause_reading()
                on_first(self, frame)
            elif self._take is not None:
                self._take(frame)

    def _next_frame(self) -> bytes | None:
        """The next frame that is there whole and may be taken."""
        received = len(self._received)
        if not self.is_open or (self._on_first is None and self._take is None) or received < _LENGTH.size:
            return None
        size = int.from_bytes(self._received[: _LENGTH.size], "little")
        if size > (TOKEN_BYTES if self._on_first is not None else MESSAGE_BYTES_MAX):
            _log.warning("a lane ends: a frame is too long", bytes=size)
            self._received.clear()
            self.close()
            return None
        end = _LENGTH.size + size
        if received < end:
            return None
        frame = bytes(memoryview(self._received)[_LENGTH.size : end])
        del self._received[:end]
        return frame


class LaneOffer:
    """What a server offers for one stream; withdrawn with the stream."""

    def __init__(self, server: "LaneServer", token: bytes) -> None:
        self._server = server
        self._token = token
        self._lane: Lane | None = None
        self._accept: Callable[[Lane], None] | None = None

    async def tell(self, context: Any) -> None:
        """Send the offer to the client of a stream; before anything else is sent there."""
        offer = ((_SOCKET_KEY, os.fsencode(self._server.path)), (_TOKEN_KEY, self._token), (_NETWORK_KEY, network_id()))
        await context.send_initial_metadata(offer)

    def when_taken(self, accept: Callable[[Lane], None]) -> None:
        """Have ``accept`` called once the lane is in place, now or later; it begins the lane."""
        self._accept = accept
        self._meet()

    def taken_by(self, lane: Lane) -> None:
        """A client showed the token."""
        self._lane = lane
        self._meet()

    def withdraw(self) -> None:
        """End the lane, or the offer."""
        self._server.forget(self._token)
        if self._lane is not None:
            self._lane.close()

    def _meet(self) -> None:
        if self._lane is not None and self._accept is not None:
            self._lane.send((b"",))
            self._accept(self._lane)


class LaneServer:
    """Listens for the lanes of one process's streams."""

    def __init__(self, path: Path, on_passed: Callable[[], None] = lambda: None) -> None:
        """``path`` was claimed before; ``on_passed`` is called whenever something passed a lane."""
        self.path = path.absolute()
        self._on_passed = on_passed
        self._offers: dict[bytes, LaneOffer] = {}
        self._strangers: dict[Lane, asyncio.TimerHandle] = {}
        self._listening: asyncio.Server | None = None
        self._open: set[Lane] = set()
        self._all_lost = asyncio.Event()

    async def start(self) -> None:
        """Listen; only processes of the same user reach it.

        Raises:
            AddressInUse: somebody took the path since it was claimed.
        """
        previous = os.umask(0o177)
        try:
            self._listening = await asyncio.get_running_loop().create_unix_server(self._admit, str(self.path))
        except OSError as error:
            raise AddressInUse.of_field("socket", str(self.path), error.strerror or "cannot be bound") from error
        finally:
            os.umask(previous)

    async def close(self) -> None:
        """Listen no more, remove the socket and end what is open. May be called twice."""
        if self._listening is not None:
            self._listening.close()
            self.path.unlink(missing_ok=True)
            self._listening = None
        for lane in list(self._open):
            lane.abort()
        while self._open:
            self._all_lost.clear()
            await self._all_lost.wait()

    def offer(self) -> LaneOffer:
        """A lane for one stream."""
        token = secrets.token_bytes(TOKEN_BYTES)
        offer = self._offers[token] = LaneOffer(self, token)
        return offer

    def forget(self, token: bytes) -> None:
        """Take back an offer."""
        self._offers.pop(token, None)

    def _admit(self) -> Lane:
        if len(self._strangers) >= STRANGERS_MAX:
            self._turn_away(next(iter(self._strangers)))
        lane = Lane(self._meet, self._lost, self._on_passed)
        self._open.add(lane)
        self._strangers[lane] = asyncio.get_running_loop().call_later(TOKEN_S, self._turn_away, lane)
        return lane

    def _meet(self, lane: Lane, token: bytes) -> None:
        offer = self._offers.pop(token, None)
        if offer is None:
            self._turn_away(lane)
            return
        timer = self._strangers.pop(lane, None)
        if timer is not None:
            timer.cancel()
        offer.taken_by(lane)

    def _lost(self, lane: Lane) -> None:
        self._open.discard(lane)
        self._turn_away(lane)
        if not self._open:
            self._all_lost.set()

    def _turn_away(self, lane: Lane) -> None:
        timer = self._strangers.pop(lane, None)
        if timer is not None:
            timer.cancel()
        lane.close()


async def connect_lane(
    call: Any, *, same_network: bool = False, on_passed: Callable[[], None] = lambda: None
) -> Lane | None:
    """The lane that the server of ``call``, a stream, offers; to be begun. None if it offers none that is reached.

    ``same_network``: only if the server's network is this process's too, so that a lane never goes around a network.
    ``on_passed`` is called whenever something was sent or has come.
    """
    try:
        async with asyncio.timeout(OFFER_S):
            offered = {key: value for key, value in await call.initial_metadata() or () if isinstance(value, bytes)}
    except (TimeoutError, aio.AioRpcError):
        # An older server says nothing before its first message; a failure of the call is told where it is read.
        return None
    if _SOCKET_KEY not in offered or (same_network and offered.get(_NETWORK_KEY) != network_id()):
        return None
    path = os.fsdecode(offered[_SOCKET_KEY])
    placed = asyncio.get_running_loop().create_future()
    lane = Lane(lambda lane, _: placed.set_result(None) if not placed.done() else lane.close(), on_passed=on_passed)
    try:
        async with asyncio.timeout(OFFER_S):
            await asyncio.get_running_loop().create_unix_connection(lambda: lane, path)
            lane.send((offered.get(_TOKEN_KEY, b""),))
            await placed
    except (TimeoutError, OSError) as error:
        lane.close()
        _log.info("no lane; the stream carries the messages", socket=path, error=str(error) or type(error).__name__)
        return None
    return lane


def network_id() -> bytes:
    """Identity of the network that this process is in, on this kernel; empty where it is not known."""
    try:
        namespace = Path("/proc/self/ns/net").stat()
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip() + b"/%d" % namespace.st_ino
    except OSError:
        return b""


def _nothing() -> None:
    """What an end does that nobody waits for."""
