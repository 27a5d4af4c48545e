"""Reads between two ends of direct UCX: what they bring, what they refuse, and how they end early."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from kvferry.core.errors import ConfigInvalid, InvalidArgument, NotReady
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.ucx import Limits, MemoryKind
from tests.unit.ucx.ends import SIZE, Ends, plan, window

STALL_S = 0.3


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Two ends with the usual limits."""
    made = Ends()
    yield made
    made.close()


@pytest.fixture
def over_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that makes no progress answers nothing."""
    monkeypatch.setenv("UCX_TLS", "tcp")


def test_scattered_runs_arrive(ends: Ends) -> None:
    """Runs in any order and of any length arrive where they belong, and nothing beside them."""
    generator = np.random.default_rng(2)
    blocks = SIZE // 4096
    sources, destinations = (generator.permutation(blocks)[: blocks // 2] * 4096 for _ in range(2))
    lengths = generator.integers(1, 4097, blocks // 2)
    read = ends.read(CopyPlan(sources, destinations, lengths))
    ends.until(lambda: ends.reader.is_done(read))
    expected = np.zeros(SIZE, dtype=np.uint8)
    for source, destination, length in zip(sources, destinations, lengths, strict=True):
        expected[destination : destination + length] = ends.there[source : source + length]
    assert np.array_equal(expected, ends.here)


def test_reads_end_each_by_itself(ends: Ends) -> None:
    """Several reads may be under way; each is done when its own bytes are there."""
    reads = [ends.read(plan((at, at, 1000))) for at in range(0, 8000, 1000)]
    for at, read in reversed(list(zip(range(0, 8000, 1000), reads, strict=True))):
        ends.until(lambda read=read: ends.reader.is_done(read))  # type: ignore[misc]
        assert np.array_equal(ends.there[at : at + 1000], ends.here[at : at + 1000])
    assert 0 == ends.reader.gets_in_flight


def test_an_empty_read_is_done(ends: Ends) -> None:
    """A read of nothing has arrived."""
    assert ends.reader.is_done(ends.read(plan()))


@pytest.mark.usefixtures("over_sockets")
def test_what_is_in_flight_is_bounded() -> None:
    """However much is asked for, so many gets of so many bytes are under way; a long run goes out in several."""
    ends = Ends(Limits(gets_max=8, bytes_max=6 * 1024, chunk_bytes_max=1024))
    read = ends.read(plan((0, 0, SIZE // 2), (SIZE // 2, SIZE // 2, SIZE // 2)))
    seen = set()

    def looked() -> bool:
        done = ends.reader.is_done(read)
        seen.add(ends.reader.gets_in_flight)
        return done

    ends.until(looked)
    assert np.array_equal(ends.there, ends.here)
    assert 6 == max(seen)
    ends.close()


@pytest.mark.usefixtures("over_sockets")
def test_a_cancelled_read_asks_for_no_more() -> None:
    """After a cancel what was in flight arrives, nothing else, and only then the read is done."""
    ends = Ends(Limits(gets_max=4, chunk_bytes_max=1024))
    warm = ends.read(plan((0, 0, 1)))
    ends.until(lambda: ends.reader.is_done(warm))
    ends.here[:] = 0
    read = ends.read(plan((0, 0, SIZE)))
    ends.reader.cancel(read)
    until = time.monotonic() + STALL_S
    while time.monotonic() < until:
        assert not ends.reader.is_done(read)
    ends.until(lambda: ends.reader.is_done(read))
    assert np.array_equal(ends.there[:4096], ends.here[:4096])
    assert 0 == np.count_nonzero(ends.here[4096:])
    ends.close()


@pytest.mark.usefixtures("over_sockets")
def test_nothing_arrives_after_close() -> None:
    """A reader that is closed with gets in flight closes at once, and the source's answers go nowhere."""
    ends = Ends()
    warm = ends.read(plan((0, 0, 1)))
    ends.until(lambda: ends.reader.is_done(warm))
    ends.here[:] = 0
    ends.read(plan((0, 0, SIZE)))
    started = time.monotonic()
    ends.reader.close()
    assert time.monotonic() - started < 5.0
    assert 0 == np.count_nonzero(ends.here)
    ends.source.close()


@pytest.mark.parametrize(
    ("run", "field"),
    [
        ((-1, 0, 1), "source_offsets[1]"),
        ((SIZE, 0, 1), "source_offsets[1]"),
        ((SIZE - 1, 0, 2), "source_offsets[1]"),
        ((0, SIZE - 1, 2), "destination_offsets[1]"),
        ((0, -4096, 1), "destination_offsets[1]"),
        ((0, 0, 0), "lengths[1]"),
        ((0, 0, -5), "lengths[1]"),
        ((1, 0, (1 << 63) - 1), "source_offsets[1]"),
        ((1 << 62, 0, 1 << 62), "source_offsets[1]"),
    ],
)
def test_a_run_that_leaves_a_region_is_refused(ends: Ends, run: tuple[int, int, int], field: str) -> None:
    """Before anything is read, naming the run."""
    with pytest.raises(InvalidArgument) as caught:
        ends.read(plan((0, 0, 4096), run))
    assert field == caught.value.metadata["field"]
    assert 0 == ends.reader.gets_in_flight
    assert 0 == np.count_nonzero(ends.here)


def test_arrays_of_different_sizes_are_refused(ends: Ends) -> None:
    """No array is read past its end."""
    one, two = np.zeros(1, dtype=np.int64), np.ones(2, dtype=np.int64)
    for wanted in (CopyPlan(one, two, two), CopyPlan(two, one, two), CopyPlan(two, two, one)):
        with pytest.raises(InvalidArgument, match="differ in size"):
            ends.read(wanted)


def test_what_is_not_known_is_refused(ends: Ends) -> None:
    """Peers, regions and reads that never were or are over."""
    read = ends.read(plan((0, 0, 1)))
    ends.until(lambda: ends.reader.is_done(read))
    with pytest.raises(InvalidArgument, match="is over, or never was"):
        ends.reader.is_done(read)
    with pytest.raises(InvalidArgument, match="no such region"):
        ends.reader.read(ends.peer, 1, ends.local, plan((0, 0, 1)))
    with pytest.raises(InvalidArgument, match="no such region"):
        ends.reader.read(ends.peer, 0, 7, plan((0, 0, 1)))
    with pytest.raises(InvalidArgument, match="no such region"):
        ends.reader.region_key(7)
    ends.reader.disconnect(ends.peer)
    with pytest.raises(InvalidArgument, match="is not connected"):
        ends.read(plan((0, 0, 1)))


@pytest.mark.parametrize("sees_failures", [True, False])
def test_a_peer_is_forgotten_and_learned_again(sees_failures: bool) -> None:
    """A reader that disconnected, once with a read under way, connects and reads again."""
    ends = Ends(sees_failures=sees_failures)
    described = ends.described
    for _ in range(3):
        ends.read(plan((0, 0, SIZE)))
        ends.reader.disconnect(ends.peer)
        ends.peer = ends.reader.connect(ends.source.address(), [described], sees_failures=sees_failures)
        ends.here[:] = 0
        read = ends.read(plan((0, 0, SIZE)))
        ends.until(lambda read=read: ends.reader.is_done(read))  # type: ignore[misc]
        assert np.array_equal(ends.there, ends.here)
    ends.close()


def test_memory_of_a_gpu_needs_a_ucx_that_knows_it(ends: Ends) -> None:
    """Where UCX finds no driver, a pool on a GPU is refused with the reason, before any read."""
    with pytest.raises(ConfigInvalid, match=r"memory=CUDA: UCX .*libucp.* ucx_library"):
        ends.reader.add_region(window(ends.here), MemoryKind.CUDA)


def test_a_closed_end_refuses(ends: Ends) -> None:
    """Every call after close is refused; closing again does no harm."""
    ends.reader.close()
    ends.reader.close()
    for call in (ends.reader.progress, ends.reader.address, lambda: ends.read(plan((0, 0, 1)))):
        with pytest.raises(NotReady, match="closed"):
            call()
