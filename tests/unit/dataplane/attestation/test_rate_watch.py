"""Reads that are slower than a way was attested to be have it probed again, and only those."""

import pytest

from kvferry_dataplane.attestation.rate_book import RateBook
from kvferry_dataplane.attestation.rate_watch import (
    RETRY_SECONDS_MIN,
    WINDOW_READS,
    ProbeTimes,
    RateWatch,
    is_degraded,
    probe_times,
)
from kvferry_dataplane.paths import Path

MIB = 1 << 20
TIMES = ProbeTimes(request_seconds=1e-4, piece_seconds=1e-6, byte_seconds=1e-9)
"""1 GB/s, and a microsecond a piece."""


def feed(watch: RateWatch, seconds: float, count: int, start: float = 0.0, pieces: int = 1) -> list[bool]:
    """Reads of 1 MiB, one after the other."""
    return [watch.carried(pieces, MIB, seconds, start + (n + 1) * seconds) for n in range(count)]


def test_costs_explain_both_probes() -> None:
    """What two probes took is what the costs found from them say, whatever the piece size."""
    times = probe_times(1e-4, (2, 2.2e-3), (512, 8e-3), 2 * MIB)
    assert times.expected(2, 2 * MIB) == pytest.approx(2.2e-3)
    assert times.expected(512, 2 * MIB) == pytest.approx(8e-3)


def test_reads_as_fast_as_attested_are_left_alone() -> None:
    """Reads that take somewhat longer than attested are not slow."""
    assert not any(feed(RateWatch(TIMES), 1.5e-3, 100))


def test_reads_of_half_the_rate_are_slow() -> None:
    """Slow reads are found at the end of a window of them, not at the first."""
    found = feed(RateWatch(TIMES), 3e-3, WINDOW_READS)
    assert [False] * (WINDOW_READS - 1) + [True] == found


def test_many_small_pieces_are_not_slow() -> None:
    """What the number of pieces explains is no loss of rate."""
    assert not any(feed(RateWatch(TIMES), 5e-3, 100, pieces=4000))


def test_one_disturbed_read_is_not_a_slow_way() -> None:
    """A single slow read among quick ones changes nothing."""
    watch = RateWatch(TIMES)
    assert not any(feed(watch, 1e-3, WINDOW_READS - 1))
    assert not watch.carried(1, MIB, 6e-3, 1.0)


def test_reads_at_a_time_share_the_way() -> None:
    """Four reads under way together, each four times as long, are as fast as one after the other."""
    watch = RateWatch(TIMES)
    found = [watch.carried(1, MIB, 4.4e-3, start + 4.4e-3) for start in range(10) for _ in range(4)]
    assert not any(found)


def test_a_slow_way_is_not_probed_over_and_over() -> None:
    """After a probe the next comes after a pause, which doubles while probes find nothing."""
    watch = RateWatch(TIMES)
    assert feed(watch, 3e-3, WINDOW_READS)[-1]
    watch.probed(10.0, degraded=False)
    assert not any(feed(watch, 3e-3, 10 * WINDOW_READS, start=10.0))
    assert not any(feed(watch, 3e-3, WINDOW_READS, start=10.0 + 1.5 * RETRY_SECONDS_MIN))
    assert any(feed(watch, 3e-3, WINDOW_READS, start=10.0 + 2 * RETRY_SECONDS_MIN))


def test_a_degraded_way_is_probed_once_reads_are_quick_again() -> None:
    """While reads are as slow as the probe has found, there is nothing to find out."""
    watch = RateWatch(TIMES)
    watch.probed(0.0, degraded=True)
    later = 2 * RETRY_SECONDS_MIN
    assert not any(feed(watch, 3e-3, 10 * WINDOW_READS, start=later))
    assert any(feed(watch, 1e-3, WINDOW_READS, start=later))


def test_a_degraded_way_is_restored_later_than_it_was_lost() -> None:
    """Half of the rate degrades a way, and only two thirds of it restore it."""
    assert not is_degraded(10.0, 5.1, was_degraded=False)
    assert is_degraded(10.0, 4.9, was_degraded=False)
    assert is_degraded(10.0, 6.0, was_degraded=True)
    assert not is_degraded(10.0, 7.0, was_degraded=True)


def test_the_book_tells_of_the_peer_that_is_slow() -> None:
    """Ways are watched by peer and path, and forgotten with the peer."""
    slow: list[str] = []
    book = RateBook(slow.append, clock=lambda: 100.0)
    for peer in ("a", "b"):
        book.watch(peer, Path.NIXL, TIMES)

    def read(peer: str, path: Path) -> None:
        for _ in range(WINDOW_READS):
            book.carried(peer, path, 1, MIB, 1.0)

    read("a", Path.PACKED)
    assert [] == slow
    read("a", Path.NIXL)
    assert ["a"] == slow
    book.forget("b")
    read("b", Path.NIXL)
    assert ["a"] == slow


def test_a_peer_that_was_not_attested_is_tried_again_when_it_is_read() -> None:
    """Reads of it have it probed again, once, after a pause."""
    now = [0.0]
    slow: list[str] = []
    book = RateBook(slow.append, clock=lambda: now[0])
    book.refused("a")
    book.carried("a", Path.NIXL, 1, MIB, 1e-3)
    now[0] = RETRY_SECONDS_MIN
    for _ in range(2):
        book.carried("a", Path.NIXL, 1, MIB, 1e-3)
    assert ["a"] == slow
