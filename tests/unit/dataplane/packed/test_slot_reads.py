"""Chunks that the source holds in staging slots and the reader reads by NIXL."""

import select
import socket
import time
from contextlib import ExitStack

import numpy as np
import pytest

from kvferry.core.errors import Fenced, PeerError, ResourceExhausted, TransportFailed
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.native import HostCopier
from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.bounds import ServerBounds
from kvferry_dataplane.packed.job import LeaseClaim
from kvferry_dataplane.packed.wire import Held, Kind, Status
from tests.unit.dataplane.packed.ends import (
    BOOT_ID,
    CLAIM,
    POISON,
    SLOT,
    WORD,
    PlayedSource,
    copied,
    shuffled,
    wait_until,
)
from tests.unit.dataplane.packed.slot_ends import SLOT_BYTES, HoldingReader, HoldingSource, source_at


@pytest.fixture
def copier(stack: ExitStack) -> HostCopier:
    """A copier."""
    copier = HostCopier(1)
    stack.callback(copier.close)
    return copier


@pytest.fixture
def source(stack: ExitStack, copier: HostCopier) -> HoldingSource:
    """A source with four slots."""
    return HoldingSource.start(stack, copier)


@pytest.fixture
def reader(stack: ExitStack, copier: HostCopier) -> HoldingReader:
    """A reader with four slots."""
    return HoldingReader.start(stack, copier)


def chunks(plan: CopyPlan, pieces: int) -> list[CopyPlan]:
    """A plan in chunks of so many pieces."""
    cuts = [slice(start, start + pieces) for start in range(0, plan.piece_count, pieces)]
    return [CopyPlan(plan.source_offsets[cut], plan.destination_offsets[cut], plan.lengths[cut]) for cut in cuts]


def expect_all_free(source: HoldingSource, reader: HoldingReader) -> None:
    """No slot of either side is lost."""
    reader.until(lambda: source.staging.slots.free_count == 4 == reader.staging.slots.free_count)


def answer_at(reader: HoldingReader, played: PlayedSource, connection: socket.socket, address: int) -> int:
    """Answer the next request with a slot; returns its number."""
    reader.until(lambda: _has_come(connection))
    header = played.take_request(connection)
    assert Kind.HOLD is header.kind
    held = Held(header.number, address, header.total_bytes, Status.OK, Kind.HOLD)
    connection.sendall(wire.encode_held(held))
    return header.number


def _has_come(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


def test_every_byte_arrives_through_slots(source: HoldingSource, reader: HoldingReader) -> None:
    """More chunks than slots come out exactly; every slot of both sides is free in the end."""
    plan = shuffled(1024, 1024)
    expected = copied(plan, source.pool, reader.pool)
    jobs = [reader.reader.read(source.peer, CLAIM, chunk) for chunk in chunks(plan, 64)]
    for job in reversed(jobs):
        reader.finish(job)
    assert np.array_equal(expected, reader.pool)
    assert plan.total_bytes == sum(job.copied_bytes for job in jobs)
    assert 1 == reader.reader.agents_made
    expect_all_free(source, reader)


def test_a_lease_that_has_ended_is_fenced(source: HoldingSource, reader: HoldingReader) -> None:
    """Another word than the lease's is refused, nothing is written, and the connection goes on."""
    with pytest.raises(Fenced):
        reader.finish(reader.reader.read(source.peer, LeaseClaim(SLOT, WORD + 1), shuffled(4, 1024)))
    assert bool((reader.pool == POISON).all())
    reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 1024)))
    expect_all_free(source, reader)


def test_a_chunk_larger_than_a_slot_is_refused(source: HoldingSource, reader: HoldingReader) -> None:
    """It fails by itself."""
    with pytest.raises(TransportFailed, match="INVALID"):
        reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(1, SLOT_BYTES + 1)))
    reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(1, SLOT_BYTES)))


def test_a_read_without_the_source_s_word_is_not_done(reader: HoldingReader, played: PlayedSource) -> None:
    """Bytes that were read count only once the source says that its slot had not been used anew; if the connection ends
    before, the chunk has failed."""
    held = np.arange(100, dtype=np.uint8)
    peer = source_at(int(played.peer.endpoint.rpartition(":")[2]), held.ctypes.data, held.nbytes)
    job = reader.reader.read(peer, CLAIM, shuffled(1, 100))
    with played.accept() as connection:
        number = answer_at(reader, played, connection, held.ctypes.data)
        reader.until(lambda: job.copied_bytes == 100 and job.slot is None)
        assert not job.done
        reader.until(lambda: _has_come(connection))
        header = played.take_request(connection)
        assert (Kind.RELEASE, number) == (header.kind, header.number)
    with pytest.raises(PeerError):
        reader.finish(job)
    assert 4 == reader.staging.slots.free_count


def test_a_source_that_is_gone_as_its_read_has_arrived_costs_no_slot(
    reader: HoldingReader, played: PlayedSource
) -> None:
    """The bytes are in a slot, and before they are scattered the connection ends: the slot is free again."""
    held = np.zeros(100, dtype=np.uint8)
    peer = source_at(int(played.peer.endpoint.rpartition(":")[2]), held.ctypes.data, held.nbytes)
    reader.wire.stuck = True
    job = reader.reader.read(peer, CLAIM, shuffled(1, 100))
    with played.accept() as connection:
        answer_at(reader, played, connection, held.ctypes.data)
        reader.until(lambda: job.read is not None)
    assert 3 == reader.staging.slots.free_count
    reader.wire.stuck = False
    with pytest.raises(PeerError):
        reader.finish(job)
    assert 4 == reader.staging.slots.free_count


@pytest.mark.parametrize("shift", [-1, 1, 1 << 40])
def test_slots_outside_the_source_s_staging_are_not_read(
    reader: HoldingReader, played: PlayedSource, shift: int
) -> None:
    """An answer that names other memory ends the connection before NIXL is asked."""
    held = np.zeros(100, dtype=np.uint8)
    peer = source_at(int(played.peer.endpoint.rpartition(":")[2]), held.ctypes.data, held.nbytes)
    job = reader.reader.read(peer, CLAIM, shuffled(1, 100))
    with played.accept() as connection:
        answer_at(reader, played, connection, held.ctypes.data + shift)
        with pytest.raises(TransportFailed, match="holds something else"):
            reader.finish(job)
    assert not reader.wire.agents


def test_a_cancelled_read_leaves_the_pool_and_its_slot_is_kept_until_nixl_is_done(
    source: HoldingSource, reader: HoldingReader
) -> None:
    """A cancelled chunk is done at once although NIXL is stuck. Its slot is nobody's until NIXL has confirmed the read;
    the source's are free at once, since the connection has ended."""
    reader.wire.stuck = True
    jobs = [reader.reader.read(source.peer, CLAIM, chunk) for chunk in chunks(shuffled(8, 1024), 4)]
    reader.until(lambda: all(job.read is not None for job in jobs))
    for job in jobs:
        job.cancel()
        assert job.done
    wait_until(lambda: source.staging.slots.free_count == 4)
    reader.reader.poll()
    assert 2 == reader.staging.slots.free_count
    reader.wire.stuck = False
    expect_all_free(source, reader)
    assert bool((reader.pool == POISON).all())
    assert 1 == reader.reader.agents_made


def test_a_read_that_never_ends_costs_its_agent_and_nobody_else_s_bytes(
    source: HoldingSource, reader: HoldingReader
) -> None:
    """Where NIXL does not end a read that nobody wants, its agent is destroyed, which frees the slot; a chunk that
    is still wanted is read again by the next agent."""
    reader.wire.stuck = True
    plan = shuffled(8, 1024)
    expected = copied(chunks(plan, 4)[1], source.pool, reader.pool)
    unwanted, wanted = (reader.reader.read(source.peer, CLAIM, chunk) for chunk in chunks(plan, 4))
    reader.until(lambda: unwanted.read is not None and wanted.read is not None)
    unwanted.cancel()
    reader.reader.poll()
    assert (1, 2) == (reader.reader.agents_made, reader.staging.slots.free_count)
    reader.seconds[0] += 1.0
    reader.reader.poll()
    assert (2, 3) == (reader.reader.agents_made, reader.staging.slots.free_count)
    reader.wire.stuck = False
    reader.finish(wanted)
    assert np.array_equal(expected, reader.pool)
    expect_all_free(source, reader)


def test_a_read_that_fails_costs_its_agent_and_nobody_else_s_bytes(
    stack: ExitStack, copier: HostCopier, reader: HoldingReader
) -> None:
    """If NIXL loses a source, its chunks fail; chunks of another source that were under way arrive."""
    bad, good = (HoldingSource.start(stack, copier) for _ in range(2))
    lost = source_at(bad.server.port, bad.staging.memory.address, bad.staging.memory.size_bytes, "lost")
    reader.wire.stuck = True
    failing = reader.reader.read(lost, CLAIM, shuffled(4, 1024))
    fine = reader.reader.read(good.peer, CLAIM, shuffled(4, 1024))
    reader.until(lambda: failing.read is not None and fine.read is not None)
    reader.wire.lost.add("lost")
    with pytest.raises(PeerError):
        reader.finish(failing)
    reader.wire.stuck = False
    reader.finish(fine)
    assert 2 == reader.reader.agents_made
    expect_all_free(good, reader)
    wait_until(lambda: bad.staging.slots.free_count == 4)


def test_readers_that_do_not_read_leave_others_their_share(
    stack: ExitStack, copier: HostCopier, source: HoldingSource, reader: HoldingReader
) -> None:
    """One reader holds at most half of the slots, however much it asks for; another one is served meanwhile."""
    stuck = HoldingReader.start(stack, copier)
    stuck.wire.stuck = True
    jobs = [stuck.reader.read(source.peer, CLAIM, shuffled(4, 1024)) for _ in range(4)]
    stuck.until(lambda: sum(job.read is not None for job in jobs) == 2)
    for _ in range(3):
        reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 1024)))
    assert 2 == source.staging.slots.free_count
    stuck.wire.stuck = False
    for job in jobs:
        stuck.finish(job)
    expect_all_free(source, stuck)


def test_a_source_without_a_free_slot_says_so_in_time(
    stack: ExitStack, copier: HostCopier, reader: HoldingReader
) -> None:
    """Where every slot is taken, a request waits for a while and is then refused; it is served once one is free."""
    source = HoldingSource.start(stack, copier, 1, ServerBounds(staging_seconds=0.05))
    taken = source.staging.slots.take(1, 1.0)
    with pytest.raises(ResourceExhausted, match="no staging slot"):
        reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 1024)))
    source.staging.slots.give_back(taken)
    reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 1024)))


def test_slots_that_are_not_read_in_time_are_taken_back(
    stack: ExitStack, copier: HostCopier, reader: HoldingReader
) -> None:
    """A reader that leaves a slot unread is dropped, and the slot is free: nobody confirms what it reads later."""
    source = HoldingSource.start(stack, copier, 4, ServerBounds(held_seconds=0.1))
    reader.wire.stuck = True
    job = reader.reader.read(source.peer, CLAIM, shuffled(4, 1024))
    reader.until(lambda: job.read is not None)
    wait_until(lambda: source.server.connection_count == 0)
    assert 4 == source.staging.slots.free_count
    with pytest.raises(PeerError):
        reader.finish(job)


def test_releases_are_seen_behind_requests_that_wait(stack: ExitStack, copier: HostCopier) -> None:
    """Two readers that each hold a slot and each want another one do not starve each other."""
    source = HoldingSource.start(stack, copier, 2)
    readers = [HoldingReader.start(stack, copier) for _ in range(2)]
    jobs = [[here.reader.read(source.peer, CLAIM, shuffled(4, 1024)) for _ in range(6)] for here in readers]
    until = time.monotonic() + 10.0
    while not all(job.done for some in jobs for job in some):
        assert time.monotonic() < until
        for here in readers:
            here.reader.poll()
    wait_until(lambda: source.staging.slots.free_count == 2)


def test_what_is_not_held_cannot_be_released(source: HoldingSource, reader: HoldingReader) -> None:
    """A reader that releases what it does not hold is dropped; others are served."""
    with socket.create_connection(("127.0.0.1", source.server.port), 5.0) as stranger:
        stranger.sendall(wire.hello(BOOT_ID) + wire.encode_release(3))
        received = bytearray()
        while some := stranger.recv(1 << 10):
            received += some
    assert wire.WELCOME_BYTES == len(received)
    reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 1024)))
