"""Pools that only a copier reaches: chunks go through staging slots on both sides."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from kvferry.core.errors import InvalidArgument, MessageTooLarge, ResourceExhausted
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.native import HostCopier
from kvferry_dataplane.config import Listen
from kvferry_dataplane.packed.connection import PackPeer
from kvferry_dataplane.packed.reader import PackReader
from kvferry_dataplane.packed.server import PackServer
from kvferry_dataplane.packed.sink import ScatteringSink
from kvferry_dataplane.packed.source import PackingSource
from kvferry_dataplane.packed.staging import Staging, StagingSlots, staging_memory
from tests.unit.dataplane.packed.ends import (
    BOOT_ID,
    CLAIM,
    POISON,
    SLOT,
    WORD,
    Bytes,
    Reader,
    Source,
    copied,
    noise,
    shuffled,
    wait_until,
    window,
)

POOL_BYTES = 1 << 20
SLOT_BYTES = 64 << 10


def make_staging(pool: Bytes, copier: HostCopier, count: int = 2) -> Staging:
    """So many slots for a pool in host memory."""
    return Staging(window(pool), lambda: copier, lambda: staging_memory(None, count * SLOT_BYTES), SLOT_BYTES)


@pytest.fixture
def copier() -> Iterator[HostCopier]:
    """A copier."""
    copier = HostCopier(1)
    yield copier
    copier.close()


def test_chunks_go_through_slots_on_both_sides(stack: ExitStack, copier: HostCopier) -> None:
    """Every byte arrives, and every slot of both sides is free in the end."""
    there, here, words = noise(POOL_BYTES), np.full(POOL_BYTES, POISON, dtype=np.uint8), np.zeros(8, dtype=np.uint64)
    words[SLOT] = WORD
    ends = [make_staging(pool, copier) for pool in (there, here)]
    server = PackServer(Listen("127.0.0.1", 0), BOOT_ID, words, PackingSource(ends[0], 1.0))
    server.start()
    stack.callback(server.close)
    reader = PackReader(ScatteringSink(ends[1]))
    stack.callback(reader.close)
    plan = shuffled(1024, 1024)
    expected = copied(plan, there, here)
    peer = PackPeer(f"127.0.0.1:{server.port}", BOOT_ID)
    jobs = []
    for start in range(0, 1024, 64):
        cut = slice(start, start + 64)
        batch = CopyPlan(plan.source_offsets[cut], plan.destination_offsets[cut], plan.lengths[cut])
        jobs.append(reader.read(peer, CLAIM, batch))
    wait_until(lambda: all(job.done for job in jobs))
    assert np.array_equal(expected, here)
    assert [2, 2] == [staging.slots.free_count for staging in ends]


def test_a_source_without_a_free_slot_says_so(
    stack: ExitStack, copier: HostCopier, make_reader: Callable[..., Reader]
) -> None:
    """A request that finds every slot taken is refused in time, and served once one is free again."""
    there, words = noise(POOL_BYTES), np.zeros(8, dtype=np.uint64)
    words[SLOT] = WORD
    staging = make_staging(there, copier, 1)
    server = PackServer(Listen("127.0.0.1", 0), BOOT_ID, words, PackingSource(staging, 0.05))
    server.start()
    stack.callback(server.close)
    peer, reader = PackPeer(f"127.0.0.1:{server.port}", BOOT_ID), make_reader()
    taken = staging.slots.take(1, 1.0)
    assert staging.memory.address == taken.host.address
    with pytest.raises(ResourceExhausted, match="no staging slot"):
        reader.finish(reader.reader.read(peer, CLAIM, shuffled(4, 1024)))
    staging.slots.give_back(taken)
    reader.finish(reader.reader.read(peer, CLAIM, shuffled(4, 1024)))


def test_a_reader_whose_pool_cannot_take_a_chunk_goes_on(
    stack: ExitStack, copier: HostCopier, make_source: Callable[..., Source]
) -> None:
    """A chunk that is larger than a slot fails by itself; what comes of it is thrown away."""
    source, here = make_source(), np.full(POOL_BYTES, POISON, dtype=np.uint8)
    reader = PackReader(ScatteringSink(make_staging(here, copier)))
    stack.callback(reader.close)
    large = reader.read(source.peer, CLAIM, shuffled(1, SLOT_BYTES + 1))
    with pytest.raises(MessageTooLarge):
        wait_until(lambda: large.done)
    small = reader.read(source.peer, CLAIM, shuffled(1, 100))
    wait_until(lambda: small.done)
    assert np.array_equal(source.pool[:100], here[:100])
    assert bool((here[100:] == POISON).all())


def test_a_chunk_that_cannot_be_scattered_fails_by_itself(
    stack: ExitStack, copier: HostCopier, make_source: Callable[..., Source]
) -> None:
    """Pieces that leave the reader's pool are refused by the copier; the connection and its slots serve the next."""
    source, here = make_source(), np.full(POOL_BYTES, POISON, dtype=np.uint8)
    staging = make_staging(here, copier)
    reader = PackReader(ScatteringSink(staging))
    stack.callback(reader.close)
    for _ in range(3):
        plan = CopyPlan(np.array([0]), np.array([POOL_BYTES - 99]), np.array([100]))
        outside = reader.read(source.peer, CLAIM, plan)
        with pytest.raises(InvalidArgument):
            wait_until(lambda job=outside: job.done)  # type: ignore[misc]
    inside = reader.read(source.peer, CLAIM, shuffled(1, 100))
    wait_until(lambda: inside.done)
    assert np.array_equal(source.pool[:100], here[:100])
    assert 1 == source.server.connection_count
    assert 2 == staging.slots.free_count


def test_who_waits_for_a_slot_gets_the_next_one() -> None:
    """A slot that is given back wakes a waiter; without one it gives up in time."""
    slots = StagingSlots(staging_memory(None, SLOT_BYTES), SLOT_BYTES)
    first = slots.take(SLOT_BYTES, 0.0)
    with pytest.raises(ResourceExhausted):
        slots.take(1, 0.01)
    later = threading.Timer(0.05, slots.give_back, [first])
    later.start()
    assert first == slots.take(1, 10.0)
    later.join()
