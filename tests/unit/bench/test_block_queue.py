"""Blocks that are waited for."""

import asyncio

import pytest

from kvferry.bench.block_queue import BlockQueue
from kvferry.core.errors import ResourceExhausted


async def test_who_asked_first_is_served_first() -> None:
    """A small request does not overtake a large one that waits."""
    queue = BlockQueue(4)
    held = await queue.take(3)
    async with asyncio.TaskGroup() as tasks:
        large = tasks.create_task(queue.take(4))
        await asyncio.sleep(0)
        small = tasks.create_task(queue.take(1))
        await asyncio.sleep(0)
        queue.give_back(held)
        blocks = await asyncio.wait_for(large, 5)
        assert not small.done()
        queue.give_back(blocks)
    assert [4, 1] == [len(large.result()), len(small.result())]


async def test_more_than_there_are_is_refused() -> None:
    """A request that no waiting would serve fails at once."""
    with pytest.raises(ResourceExhausted, match="5 blocks wanted"):
        await BlockQueue(4).take(5)


async def test_who_gives_up_lets_the_next_through() -> None:
    """A cancelled request neither keeps blocks nor its place."""
    queue = BlockQueue(4)
    held = await queue.take(2)
    async with asyncio.TaskGroup() as tasks:
        large = tasks.create_task(queue.take(4))
        await asyncio.sleep(0)
        small = tasks.create_task(queue.take(2))
        await asyncio.sleep(0)
        large.cancel()
        blocks = await asyncio.wait_for(small, 5)
    queue.give_back(blocks + held)
    assert 4 == queue.free_count


async def test_blocks_of_who_gives_up_when_served_are_free_again() -> None:
    """Cancelled between being served and running again, a task leaves its blocks to others."""
    queue = BlockQueue(2)
    held = await queue.take(2)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(queue.take(2))
        await asyncio.sleep(0)
        queue.give_back(held)
        waiting.cancel()
    assert 2 == queue.free_count
