"""A source that stops midway through a read: the destination's blocks are handed back, and no byte comes after that.

Over sockets (`UCX_TLS=tcp`), so that a stopped source really stalls a read. Everything is real, from the engine's call
to the data planes' memory. The same with the rollover switched off finds late bytes: the check can fail.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from kvferry import DeadlineExceeded, KvferryError, PullFailed, Reason
from kvferry.sdk.pulls import Pull
from kvferry_dataplane.reads.unsafe import SKIP_ROLLOVER
from tests.process.cluster.stuck_source import FILLED, OTHERS, READ, Trio, running_trio

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trio() -> AsyncIterator[Trio]:
    """Two sources, and a destination as kvferry is meant to run."""
    async with running_trio() as trio:
        yield trio


@pytest.fixture(scope="module")
def unsafe_trio(trio: Trio) -> Trio:
    """The same with the destination that gives up no agent."""
    return replace(trio, destination="unsafe-0")


async def ended(pull: Pull) -> PullFailed:
    """The failure that a pull ends with."""
    with pytest.raises(PullFailed) as caught:
        await pull.wait()
    return caught.value


async def pulls_meanwhile(trio: Trio, pull: Pull) -> int:
    """Pulls from the other source that succeeded before ``pull`` had ended."""
    count = 0
    while not pull.done():
        await trio.pull_from_other(OTHERS)
        count += 1
    return count


async def busy_blocks(trio: Trio, pull: Pull) -> set[Reason]:
    """Why pulls from the other source into blocks of ``pull`` were refused before it had ended."""
    refused = set()
    while not pull.done():
        try:
            await trio.pull_from_other(READ[:2])
        except KvferryError as error:
            refused.add(error.reason)
        else:
            assert pull.done(), "blocks that bytes could still arrive in were given to another read"
    return refused


async def test_no_byte_comes_after_an_acknowledged_cancel(trio: Trio) -> None:
    """A cancel is acknowledged with settled blocks while the source is stopped; nothing arrives once it goes on, and
    pulls from another source succeed all the while."""
    pull = await trio.stopped_midway(timeout_s=60)
    async with asyncio.TaskGroup() as tasks:
        others = tasks.create_task(pulls_meanwhile(trio, pull))
        result = await pull.cancel()
    assert ("cancelled", True) == (result.state, result.destination_settled)
    assert others.result() > 0
    assert 0 == await trio.late_bytes(expected=False)
    await trio.engine.pull(trio.handles["stuck-0"], READ, timeout_s=20)
    assert len(READ) == trio.arrived()


async def test_no_byte_comes_after_a_deadline(trio: Trio) -> None:
    """At its deadline a pull from a stopped source ends with settled blocks, and nothing arrives once it goes on."""
    pull = await trio.stopped_midway(timeout_s=2.5)
    async with asyncio.TaskGroup() as tasks:
        others = tasks.create_task(pulls_meanwhile(trio, pull))
        failure = await ended(pull)
    assert (Reason.DEADLINE_EXCEEDED, True) == (failure.reason, failure.destination_settled)
    assert others.result() > 0
    assert 0 == await trio.late_bytes(expected=False)


async def test_blocks_of_a_read_that_settles_are_given_to_nobody(trio: Trio) -> None:
    """Until a cancelled read has settled its blocks are refused as BLOCK_BUSY; then they take another read's bytes."""
    pull = await trio.stopped_midway(timeout_s=60)
    async with asyncio.TaskGroup() as tasks:
        refused = tasks.create_task(busy_blocks(trio, pull))
        await pull.cancel()
    assert {Reason.BLOCK_BUSY} == refused.result()
    await trio.pull_from_other(READ[:2])
    assert (trio.pool[:2] == FILLED).all()
    assert 0 == await trio.late_bytes(expected=False)


@pytest.mark.parametrize("by_deadline", [False, True], ids=["cancel", "deadline"])
async def test_without_the_rollover_late_bytes_are_found(unsafe_trio: Trio, *, by_deadline: bool) -> None:
    """With the agents kept, the same steps find bytes in blocks that were handed back: the other tests can fail."""
    pull = await unsafe_trio.stopped_midway(timeout_s=2.5 if by_deadline else 60)
    if by_deadline:
        assert (await ended(pull)).destination_settled
    else:
        assert (await pull.cancel()).destination_settled
    assert await unsafe_trio.late_bytes(expected=True) > 0
    log = "".join(unsafe_trio.workers["unsafe-0"].data_planes[0].log_lines())
    assert SKIP_ROLLOVER in log


async def test_an_end_that_nobody_confirms_is_settled_late(trio: Trio) -> None:
    """A pull whose own data plane does not answer ends unsettled; once that goes on, it confirms, and the blocks may be
    used again."""
    pull = await trio.stopped_midway(timeout_s=60)
    destination = trio.workers[trio.destination].data_planes[0]
    destination.pause()
    result = await pull.cancel()
    assert ("cancelled", False) == (result.state, result.destination_settled)
    destination.resume()
    assert (await pull.wait_settled(timeout_s=5)).destination_settled
    assert 0 == await trio.late_bytes(expected=False)


async def test_a_lost_data_plane_leaves_the_blocks_unsettled_until_it_is_back(trio: Trio) -> None:
    """When its own data plane is killed a pull ends unsettled; the data plane's next life has nothing that writes."""
    pull = await trio.stopped_midway(timeout_s=60)
    worker = trio.workers[trio.destination]
    await worker.data_planes[0].kill()
    failure = await ended(pull)
    assert (Reason.DATA_PLANE_LOST, False) == (failure.reason, failure.destination_settled)
    with pytest.raises(DeadlineExceeded):
        await pull.wait_settled(timeout_s=0.3)
    trio.workers["stuck-0"].data_planes[0].resume()
    await worker.start_data_plane(0)
    assert (await pull.wait_settled(timeout_s=10)).destination_settled
