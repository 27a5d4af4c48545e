"""Long-lived streams whose messages carry all that waits: a message costs much more than what is in it.

Who has something to say puts it into an :class:`Outgoing`; one writer per stream takes what has gathered there while
its last message went out. With little to do every message holds one item, at once; with much to do messages grow.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio

from kvferry.core.errors import KvferryError, ResourceExhausted
from kvferry.rpc.errors import abort

BATCH_BYTES = 1 << 20
"""A message is not filled beyond this; a single larger item still goes out by itself."""
BATCH_ITEMS_MAX = 256

_Item = TypeVar("_Item", bound=Message)
_Request = TypeVar("_Request")
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

    async def take(self) -> list[_Item]:
        """All that waits, as much as fits into a message; waits for the first. Empty once closed.

        Raises:
            ResourceExhausted: the other side reads too slowly.
        """
        while not self._items and not self._closed and not self._overflowed:
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

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
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


# The generated stubs give their own context type, a subtype of this one that exists only for type checkers.
async def serve_batches(
    requests: AsyncIterator[_Request],
    context: Any,
    handle: Callable[[_Request], None],
    outgoing: Outgoing[_Item],
    message_of: Callable[[list[_Item]], Any],
) -> None:
    """Serve one stream until either side ends it: ``handle`` takes messages in order, ``outgoing`` is what is answered.

    A KvferryError of ``handle`` or of an overflow ends the call with its rich status.
    """

    async def read() -> None:
        try:
            async for request in requests:
                handle(request)
        finally:
            outgoing.close()

    refusal: KvferryError | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(read())
            await write_batches(context, outgoing, message_of)
            reader.cancel()
    except* KvferryError as errors:
        refusal = _first(errors)
    if refusal is not None:
        # Not above: what is raised there comes out in a group, which gRPC would take for a defect.
        await abort(context, refusal)


def _first(errors: ExceptionGroup[KvferryError]) -> KvferryError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
