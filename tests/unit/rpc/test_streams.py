"""Items that wait for a stream, and how many of them a message takes."""

import asyncio

import pytest

from kvferry.core.errors import ResourceExhausted
from kvferry.negotiation.v1.negotiation_pb2 import ConcludeRequest
from kvferry.rpc.streams import BATCH_BYTES, BATCH_ITEMS_MAX, Outgoing, write_batches


def item(name: str, size: int = 0) -> ConcludeRequest:
    """Something to send."""
    return ConcludeRequest(transfer=name, handle=b"h" * size)


class SlowCall:
    """A call whose messages go out one at a time, when a test says so."""

    def __init__(self) -> None:
        self.written: list[list[str]] = []
        self.begun = asyncio.Semaphore(0)
        self.turn = asyncio.Semaphore(0)

    async def write(self, message: list[str], /) -> None:
        """Send one message."""
        self.written.append(message)
        self.begun.release()
        await self.turn.acquire()


async def test_a_message_takes_all_that_waits() -> None:
    """The first item goes out by itself, at once; what comes while it does goes out together, in order."""
    outgoing: Outgoing[ConcludeRequest] = Outgoing(10)
    call = SlowCall()
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(write_batches(call, outgoing, lambda batch: [one.transfer for one in batch]))
        outgoing.put(item("a"))
        await call.begun.acquire()
        for name in "bcd":
            outgoing.put(item(name))
        call.turn.release()
        await call.begun.acquire()
        call.turn.release()
        outgoing.close()
        await writing
    assert [["a"], ["b", "c", "d"]] == call.written


async def test_a_message_stays_small() -> None:
    """No message is filled beyond its bytes or items; an item that is larger by itself goes alone."""
    outgoing: Outgoing[ConcludeRequest] = Outgoing(1_000)
    for size in (BATCH_BYTES // 2, BATCH_BYTES // 3, BATCH_BYTES // 2, 2 * BATCH_BYTES, 1):
        outgoing.put(item("x", size))
    assert [2, 1, 1, 1] == [len(await outgoing.take()) for _ in range(4)]
    for _ in range(BATCH_ITEMS_MAX + 1):
        outgoing.put(item("x"))
    assert [BATCH_ITEMS_MAX, 1] == [len(await outgoing.take()) for _ in range(2)]


async def test_too_many_items_are_refused() -> None:
    """Past the bound an item is refused, and nothing of what waits is lost."""
    outgoing: Outgoing[ConcludeRequest] = Outgoing(2)
    outgoing.put(item("a"))
    outgoing.put(item("b"))
    with pytest.raises(ResourceExhausted):
        outgoing.put(item("c"))
    assert ["a", "b"] == [one.transfer for one in await outgoing.take()]


async def test_a_loss_that_nobody_could_be_told_ends_the_stream() -> None:
    """Events past the bound end the stream, so that its reader comes back and asks."""
    outgoing: Outgoing[ConcludeRequest] = Outgoing(1)
    outgoing.put_or_end(item("a"))
    outgoing.put_or_end(item("b"))
    with pytest.raises(ResourceExhausted):
        await outgoing.take()
