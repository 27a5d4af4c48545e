"""Whether real reads are as fast as a way was attested to be. Pure.

A read is slow that takes more than twice as long as the attestation lets expect of so many pieces and bytes. Reads of
the same way share it: only the time in which at least one was under way counts.
"""

from dataclasses import dataclass

SLOW_FACTOR = 2.0
"""A way that has lost half of its rate is degraded ..."""
RESTORED_FACTOR = 1.5
"""... and no longer so once it has two thirds of it again."""
WINDOW_BYTES = 32 << 20
WINDOW_READS = 8
"""Reads are judged together, so many bytes or reads at a time: a single one may just have been disturbed."""
RETRY_SECONDS_MIN = 10.0
RETRY_SECONDS_MAX = 300.0
"""Between two probes of a way: doubled each time that the probe finds the way as it was, whatever reads say."""


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """What an attestation says that a read costs."""

    request_seconds: float
    piece_seconds: float
    byte_seconds: float

    def expected(self, piece_count: int, total_bytes: int) -> float:
        """Seconds of a read."""
        return self.request_seconds + piece_count * self.piece_seconds + total_bytes * self.byte_seconds


def probe_times(latency_s: float, large: tuple[int, float], small: tuple[int, float], total_bytes: int) -> ProbeTimes:
    """The costs that explain two probes of ``total_bytes``; each was of so many pieces, and took so many seconds."""
    piece_seconds = max((small[1] - large[1]) / (small[0] - large[0]), 0.0)
    left = large[1] - latency_s - large[0] * piece_seconds
    # A latency that was disturbed explains no more than half.
    return ProbeTimes(latency_s, piece_seconds, max(left, large[1] / 2) / total_bytes)


class RateWatch:
    """The reads of one way. Times are in seconds, on a clock that only grows."""

    def __init__(self, times: ProbeTimes) -> None:
        self._times = times
        self._pause_s = RETRY_SECONDS_MIN
        self._not_before = float("-inf")
        self._degraded = False
        self._start_window()

    def _start_window(self) -> None:
        self._expected_s = self._busy_s = 0.0
        self._bytes = self._reads = 0
        self._busy_until = float("-inf")

    def carried(self, piece_count: int, total_bytes: int, seconds: float, now: float) -> bool:
        """Take in a read that has ended now; returns whether the way is to be probed again: it seems to be slow and is
        not known to be degraded, or the other way round.
        """
        self._busy_s += min(seconds, max(now - self._busy_until, 0.0))
        self._busy_until = now
        self._expected_s += self._times.expected(piece_count, total_bytes)
        self._bytes += total_bytes
        self._reads += 1
        if self._bytes < WINDOW_BYTES and self._reads < WINDOW_READS:
            return False
        is_slow = self._busy_s > SLOW_FACTOR * self._expected_s
        self._start_window()
        return is_slow is not self._degraded and now >= self._not_before

    def probed(self, now: float, *, degraded: bool) -> None:
        """The way was probed again, and is degraded or not: how soon the next time may be."""
        as_before = degraded is self._degraded
        self._degraded = degraded
        self._pause_s = min(2 * self._pause_s, RETRY_SECONDS_MAX) if as_before else RETRY_SECONDS_MIN
        self._not_before = now + self._pause_s
        self._start_window()


def is_degraded(first_gbytes_per_s: float, now_gbytes_per_s: float, *, was_degraded: bool) -> bool:
    """Whether a way counts as degraded after a probe."""
    factor = RESTORED_FACTOR if was_degraded else SLOW_FACTOR
    return now_gbytes_per_s * factor < first_gbytes_per_s
