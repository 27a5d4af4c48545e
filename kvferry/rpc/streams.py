"""Long-lived streams whose messages carry all that waits: a message costs much more than what is in it.

Who has something to say puts it into an :class:`Outgoing`; one writer per stream takes what has gathered there while
its last message went out. With little to do every message holds one item, at once; with much to do messages grow.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

from kvferry.core.errors import InvalidArgument, KvferryError, ResourceExhausted
from kvferry.rpc.errors import abort
from kvferry.rpc.lanes import Lane, LaneServer, Take

BATCH_BYTES = 1 << 20
"""A message is not filled beyond this; a single larger item still goes out by itself."""
BATCH_ITEMS_MAX = 256

Ended = Callable[[], None]
"""Called once."""

_ITEM_TAG = b"\x0a"
"""Of protobuf: field 1, with a length."""
_Item = TypeVar("_Item", bound=Message)
_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")
_Written_contra = TypeVar("_Written_contra", contravariant=True)


class Outgoing(Generic[_Item]):
    """Items on their way into one stream, in order and bounded. For one writer."""

    def __init__(self, count_max: int) -> None:
        self._items: deque[_Item] = deque()
        self._count_max = count_max
        self._closed = False
        self._overflowed = False
        self._waiting: asyncio.Future[None] | None = None
        self._lane: Lane | None = None
        self._frames_of: Callable[[list[bytes]], Iterable[bytes]]
        self._flushing = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _Item) -> None:
        """Add an item.

        Raises:
            ResourceExhausted: as many as may be are waiting; nothing was added.
        """
        if len(self._items) >= self._count_max:
            raise ResourceExhausted(f"{self._count_max} messages wait to be sent, the bound of a stream")
        self._items.append(item)
        self._wake()

    def put_or_end(self, item: _Item) -> None:
        """Add an item that nobody could be told the loss of: past the bound the stream ends instead."""
        if len(self._items) >= self._count_max:
            self._overflowed = True
        else:
            self._items.append(item)
        self._wake()

    def close(self) -> None:
        """Have :meth:`take` give nothing any more."""
        self._closed = True
        self._wake()

    def go_by(self, lane: Lane, frames_of: Callable[[list[bytes]], Iterable[bytes]]) -> None:
        """Send everything by a lane from now on, in frames made of written items; :meth:`take` then waits for the end.

        Who begins the lane has :meth:`flush` called when it can be written to again.
        """
        self._lane, self._frames_of = lane, frames_of
        self.flush()

    def flush(self) -> None:
        """Send by the lane what waits, as far as the other side keeps up."""
        self._flushing = False
        while self._items and self._lane is not None and self._lane.is_writable and not self._closed:
            self._lane.send(self._frames_of(self._next_written()))

    async def take(self) -> list[_Item]:
        """All that waits, as much as fits into a message; waits for the first. Empty once closed.

        Raises:
            ResourceExhausted: the other side reads too slowly.
        """
        while (not self._items or self._lane is not None) and not self._closed and not self._overflowed:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        if self._overflowed:
            raise ResourceExhausted(f"{self._count_max} messages wait to be read, the bound of a stream")
        return [] if self._closed else self._next_batch()

    def _next_batch(self) -> list[_Item]:
        batch = [self._items.popleft()]
        size = batch[0].ByteSize()
        while self._items and len(batch) < BATCH_ITEMS_MAX:
            size += self._items[0].ByteSize()
            if size > BATCH_BYTES:
                break
            batch.append(self._items.popleft())
        return batch

    def _next_written(self) -> list[bytes]:
        """As :meth:`_next_batch`, each item written out; to look at their sizes first would be to write them twice."""
        batch: list[bytes] = []
        size = 0
        while self._items and len(batch) < BATCH_ITEMS_MAX and size < BATCH_BYTES:
            batch.append(self._items.popleft().SerializeToString())
            size += len(batch[-1])
        return batch

    def _wake(self) -> None:
        if self._lane is not None and not self._closed and not self._overflowed:
            # The first item goes at once; what else one turn of the loop has to say goes together, a turn later.
            if not self._flushing:
                self.flush()
                self._flushing = True
                asyncio.get_running_loop().call_soon(self.flush)
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Writable(Protocol[_Written_contra]):
    """A call that takes messages: a client's call, or a server's context."""

    async def write(self, message: _Written_contra, /) -> None:
        """Send one message; waits while the other side is behind."""


async def write_batches(
    call: Writable[_Response], outgoing: Outgoing[_Item], message_of: Callable[[list[_Item]], _Response]
) -> None:
    """Send until ``outgoing`` is closed or the call has ended; who reads the call learns why it did."""
    while batch := await outgoing.take():
        try:
            await call.write(message_of(batch))
        except (grpc.RpcError, aio.UsageError, asyncio.InvalidStateError):
            return


def carry_by(lane: Lane, outgoing: Outgoing[_Item], take: Take, on_end: Ended) -> None:
    """Begin a lane: ``outgoing`` goes by it, ``take`` gets the messages that come, ``on_end`` hears its end."""
    outgoing.go_by(lane, _one_message_of)
    lane.begin(take, on_end, outgoing.flush)


def _one_message_of(items: list[bytes]) -> tuple[bytes]:
    """A message of items that are written out already: every such message has them in its one field, number 1."""
    parts: list[bytes] = []
    for item in items:
        parts += _ITEM_TAG, _varint(len(item)), item
    return (b"".join(parts),)


def _varint(number: int) -> bytes:
    """A number as protobuf writes it: 7 bits a byte, the lowest first."""
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*digits, number))


class StreamServer(Generic[_Request, _Item]):
    """Serves one stream until either side ends it: ``handle`` takes messages in order, ``outgoing`` is the answers.

    A KvferryError of ``handle`` or of an overflow ends the call with its rich status.
    """

    def __init__(
        self,
        request_type: type[_Request],
        handle: Callable[[_Request], None],
        outgoing: Outgoing[_Item],
        message_of: Callable[[list[_Item]], Any],
    ) -> None:
        self._request_type = request_type
        self._handle = handle
        self._outgoing = outgoing
        self._message_of = message_of
        self._refusal: KvferryError | None = None

    # The generated stubs give their own context type, a subtype of this one that exists only for type checkers.
    async def serve(
        self, requests: AsyncIterator[_Request], context: Any, lanes: LaneServer, first: Message | None = None
    ) -> None:
        """Serve, by a lane where the client reaches it. ``first`` is sent on the stream before anything else."""
        offer = lanes.offer()
        try:
            await offer.tell(context)
            if first is not None:
                await context.write(first)
            offer.when_taken(self._go_by)
            await self._serve(requests, context)
        finally:
            offer.withdraw()

    async def _serve(self, requests: AsyncIterator[_Request], context: Any) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(requests))
                await write_batches(context, self._outgoing, self._message_of)
                reader.cancel()
        except* KvferryError as errors:
            self._refusal = _first(errors)
        if self._refusal is not None:
            # Not above: what is raised there comes out in a group, which gRPC would take for a defect.
            await abort(context, self._refusal)

    async def _read(self, requests: AsyncIterator[_Request]) -> None:
        try:
            async for request in requests:
                self._handle(request)
        finally:
            self._outgoing.close()

    def _go_by(self, lane: Lane) -> None:
        carry_by(lane, self._outgoing, self._take, self._outgoing.close)

    def _take(self, frame: bytes) -> None:
        if self._refusal is not None:
            return
        try:
            self._handle(self._request_type.FromString(frame))
        except DecodeError as error:
            self._end(InvalidArgument.of_field("message", f"{len(frame)} bytes", f"cannot be parsed: {error}"))
        except KvferryError as error:
            self._end(error)

    def _end(self, refusal: KvferryError) -> None:
        self._refusal = refusal
        self._outgoing.close()


def _first(errors: ExceptionGroup[KvferryError]) -> KvferryError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
