"""Reading over the packed path."""

import socket
from collections.abc import Callable

import numpy as np
import pytest

from kvferry.core.errors import Fenced, InvalidArgument, PeerError, ResourceExhausted, TransportFailed
from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.bounds import ReaderBounds
from kvferry_dataplane.packed.connection import PackPeer
from kvferry_dataplane.packed.job import LeaseClaim
from tests.unit.dataplane.packed.ends import (
    BOOT_ID,
    CLAIM,
    POISON,
    SLOT,
    WORD,
    PlayedSource,
    Reader,
    Source,
    copied,
    shuffled,
    wait_until,
)

MakeSource = Callable[..., Source]
MakeReader = Callable[..., Reader]


def plan_of(source: list[int], destination: list[int], lengths: list[int]) -> CopyPlan:
    """A plan of these pieces."""
    return CopyPlan(*(np.array(values, dtype=np.int64) for values in (source, destination, lengths)))


@pytest.mark.parametrize(("piece_count", "run_bytes"), [(1, 1 << 20), (256, 4096), (20000, 33), (3, 349_525)])
def test_every_byte_arrives_in_its_place(
    make_source: MakeSource, make_reader: MakeReader, piece_count: int, run_bytes: int
) -> None:
    """Shuffled pieces of any size come out exactly as planned, and nothing beside them is touched."""
    source, reader = make_source(), make_reader()
    plan = shuffled(piece_count, run_bytes)
    expected = copied(plan, source.pool, reader.pool)
    job = reader.reader.read(source.peer, CLAIM, plan)
    reader.finish(job)
    assert np.array_equal(expected, reader.pool)
    assert piece_count * run_bytes == job.copied_bytes == source.server.sent_bytes


def test_pieces_of_different_lengths(make_source: MakeSource, make_reader: MakeReader) -> None:
    """Odd, empty and large pieces of one plan arrive."""
    source, reader = make_source(), make_reader()
    plan = plan_of([5, 0, 1000, 70_000], [900_001, 17, 17, 1], [1, 3, 0, 500_000 - 484_000])
    expected = copied(plan, source.pool, reader.pool)
    reader.finish(reader.reader.read(source.peer, CLAIM, plan))
    assert np.array_equal(expected, reader.pool)


def test_many_chunks_in_flight(make_source: MakeSource, make_reader: MakeReader) -> None:
    """Chunks that are asked for at once arrive all, whatever the order in which they are looked at."""
    source, reader = make_source(4 << 20), make_reader(4 << 20)
    plan = shuffled(4096, 1024)
    expected = copied(plan, source.pool, reader.pool)
    chunks = [slice(start, start + 128) for start in range(0, 4096, 128)]
    jobs = [
        reader.reader.read(
            source.peer, CLAIM, CopyPlan(plan.source_offsets[c], plan.destination_offsets[c], plan.lengths[c])
        )
        for c in chunks
    ]
    for job in reversed(jobs):
        reader.finish(job)
    assert np.array_equal(expected, reader.pool)


def test_a_lease_that_has_ended_is_fenced(make_source: MakeSource, make_reader: MakeReader) -> None:
    """A cleared word, another word and a slot that is none are refused, and nothing is written."""
    source, reader = make_source(), make_reader()
    plan = shuffled(4, 4096)
    for claim in (LeaseClaim(SLOT, WORD + 1), LeaseClaim(SLOT + 1, WORD), LeaseClaim(1 << 20, WORD), LeaseClaim(0, 0)):
        with pytest.raises(Fenced):
            reader.finish(reader.reader.read(source.peer, claim, plan))
    source.words[SLOT] = 0
    with pytest.raises(Fenced):
        reader.finish(reader.reader.read(source.peer, CLAIM, plan))
    assert bool((reader.pool == POISON).all())


def test_a_lease_that_ends_while_it_is_read_is_fenced(make_reader: MakeReader, played: PlayedSource) -> None:
    """The bytes have come, but the source says after the last one that the lease no longer held."""
    reader = make_reader()
    job = reader.reader.read(played.peer, CLAIM, shuffled(1, 100))
    with played.accept() as connection:
        header = played.take_request(connection)
        connection.sendall(wire.answer(header.number, wire.Status.OK, 100) + bytes(100))
        connection.sendall(wire.trailer(header.number, wire.Status.FENCED))
        with pytest.raises(Fenced):
            reader.finish(job)


def test_pieces_outside_the_source_s_pool_are_refused(make_source: MakeSource, make_reader: MakeReader) -> None:
    """The source checks every piece; its connection goes on."""
    source, reader = make_source(1 << 20), make_reader(2 << 20)
    for offset in (-1, (1 << 20) - 99, 1 << 62):
        with pytest.raises(TransportFailed, match="INVALID"):
            reader.finish(reader.reader.read(source.peer, CLAIM, plan_of([0, offset], [0, 500], [100, 100])))
    reader.finish(reader.reader.read(source.peer, CLAIM, plan_of([0], [0], [100])))
    assert 1 == source.server.connection_count


def test_pieces_outside_the_own_pool_are_refused(make_source: MakeSource, make_reader: MakeReader) -> None:
    """The reader's native code checks every piece before it receives, and what comes is thrown away."""
    source, reader = make_source(), make_reader()
    with pytest.raises(InvalidArgument, match="leaves the window"):
        reader.finish(reader.reader.read(source.peer, CLAIM, plan_of([0], [(1 << 20) - 99], [100])))
    reader.finish(reader.reader.read(source.peer, CLAIM, plan_of([0], [0], [100])))
    assert bool((reader.pool[100:] == POISON).all())


def test_nothing_is_written_after_a_cancel(make_reader: MakeReader, played: PlayedSource) -> None:
    """A chunk cancelled in its middle is done at once, and what arrives later is thrown away."""
    reader = make_reader()
    job = reader.reader.read(played.peer, CLAIM, plan_of([0], [0], [1 << 20]))
    with played.accept() as connection:
        header = played.take_request(connection)
        connection.sendall(wire.answer(header.number, wire.Status.OK, 1 << 20) + bytes(1000))
        wait_until(lambda: not reader.pool[:1000].any())
        job.cancel()
        reader.finish(job)
        assert 1000 == job.copied_bytes
        connection.sendall(bytes((1 << 20) - 1000) + wire.trailer(header.number, wire.Status.OK))
        # The connection is good for the next chunk, which is how we know that the rest of the first has come.
        after = reader.reader.read(played.peer, CLAIM, plan_of([0], [5000], [10]))
        header = played.take_request(connection)
        connection.sendall(wire.answer(header.number, wire.Status.OK, 10) + bytes(10))
        connection.sendall(wire.trailer(header.number, wire.Status.OK))
        reader.finish(after)
    assert bool((reader.pool[1000:5000] == POISON).all())
    assert bool((reader.pool[5010:] == POISON).all())


def test_a_cancelled_chunk_of_a_stuck_source_is_done_and_later_ones_get_a_new_connection(
    make_reader: MakeReader, played: PlayedSource
) -> None:
    """A source that stops in the middle costs its connection only, and only once nobody wants what is to come."""
    reader = make_reader(bounds=ReaderBounds(drain_seconds=0.05))
    job = reader.reader.read(played.peer, CLAIM, plan_of([0], [0], [1 << 20]))
    waiting = reader.reader.read(played.peer, CLAIM, plan_of([0], [0], [100]))
    with played.accept() as connection:
        header = played.take_request(connection)
        connection.sendall(wire.answer(header.number, wire.Status.OK, 1 << 20) + bytes(1000))
        wait_until(lambda: not reader.pool[:1000].any())
        waiting.cancel()
        assert waiting.done
        job.cancel()
        reader.finish(job)
        while connection.recv(1 << 16):
            pass
    after = reader.reader.read(played.peer, CLAIM, plan_of([0], [0], [100]))
    with played.accept() as connection:
        header = played.take_request(connection)
        connection.sendall(wire.answer(header.number, wire.Status.OK, 100) + bytes(100))
        connection.sendall(wire.trailer(header.number, wire.Status.OK))
        reader.finish(after)


def test_a_source_that_dies_fails_every_chunk(make_reader: MakeReader, played: PlayedSource) -> None:
    """A connection that ends in the middle of a chunk is told as PEER_LOST by all chunks on it."""
    reader = make_reader()
    jobs = [reader.reader.read(played.peer, CLAIM, shuffled(4, 1000)) for _ in range(3)]
    with played.accept() as connection:
        header = played.take_request(connection)
        connection.sendall(wire.answer(header.number, wire.Status.OK, 4000) + bytes(100))
    for job in jobs:
        with pytest.raises(PeerError, match="PEER_LOST"):
            reader.finish(job)


def test_a_connection_that_ended_while_it_was_idle_is_made_anew(make_reader: MakeReader, played: PlayedSource) -> None:
    """The next chunk after the end of an idle connection does not pay for it."""
    reader = make_reader()

    def serve(connection: socket.socket) -> None:
        header = played.take_request(connection)
        connection.sendall(wire.answer(header.number, wire.Status.OK, 10) + bytes(10))
        connection.sendall(wire.trailer(header.number, wire.Status.OK))

    for _ in range(2):
        job = reader.reader.read(played.peer, CLAIM, shuffled(1, 10))
        with played.accept() as connection:
            serve(connection)
            reader.finish(job)


def test_another_life_of_the_source_is_not_read(make_source: MakeSource, make_reader: MakeReader) -> None:
    """A data plane that has restarted on the same port refuses readers of its former life."""
    source, reader = make_source(), make_reader()
    former = PackPeer(source.peer.endpoint, BOOT_ID[::-1][:-1] + b"x")
    with pytest.raises(PeerError, match="OTHER_LIFE"):
        reader.finish(reader.reader.read(former, CLAIM, shuffled(1, 10)))


def test_no_source_is_an_error_with_its_address(make_reader: MakeReader) -> None:
    """A port where nobody listens is a peer that cannot be reached."""
    reader = make_reader()
    with pytest.raises(PeerError, match=r"127\.0\.0\.1:1:"):
        reader.finish(reader.reader.read(PackPeer("127.0.0.1:1", BOOT_ID), CLAIM, shuffled(1, 10)))


def test_requests_in_flight_are_bounded(make_reader: MakeReader, played: PlayedSource) -> None:
    """One source gets so many requests at a time and no more."""
    reader = make_reader(bounds=ReaderBounds(requests_in_flight=2))
    for _ in range(2):
        reader.reader.read(played.peer, CLAIM, shuffled(1, 10))
    with pytest.raises(ResourceExhausted, match="requests_in_flight"):
        reader.reader.read(played.peer, CLAIM, shuffled(1, 10))
    played.accept().close()


def test_an_answer_to_another_request_ends_the_connection(make_reader: MakeReader, played: PlayedSource) -> None:
    """A source that answers what was not asked is not trusted with the pool."""
    reader = make_reader()
    job = reader.reader.read(played.peer, CLAIM, shuffled(1, 10))
    with played.accept() as connection:
        header = played.take_request(connection)
        connection.sendall(wire.answer(header.number + 1, wire.Status.OK, 10) + bytes(10))
        with pytest.raises(TransportFailed):
            reader.finish(job)
    assert bool((reader.pool == POISON).all())
