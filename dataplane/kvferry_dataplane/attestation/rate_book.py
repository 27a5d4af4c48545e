"""The watches over all ways that reads take, and who is told when one is slow."""

import threading
import time
from collections.abc import Callable

from kvferry_dataplane.attestation.rate_watch import RETRY_SECONDS_MIN, ProbeTimes, RateWatch
from kvferry_dataplane.paths import Path


class RateBook:
    """Watches by peer and path. The reads' thread tells of reads, the event loop of probes."""

    def __init__(self, on_slow: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """``on_slow`` is called, on the reads' thread, with the name of a peer that is to be probed again: it has been
        slow, or could not be attested before and is read all the same.
        """
        self._on_slow = on_slow
        self._clock = clock
        self._lock = threading.Lock()
        self._watches: dict[tuple[str, Path], RateWatch] = {}
        self._refused: dict[str, float] = {}
        """Peers that could not be attested, and when a read has them probed again."""

    def carried(self, peer: str, path: Path, piece_count: int, total_bytes: int, seconds: float) -> None:
        """A read has brought what it wanted from a peer."""
        with self._lock:
            now = self._clock()
            watch = self._watches.get((peer, path))
            again = watch is not None and watch.carried(piece_count, total_bytes, seconds, now)
            retry_at = self._refused.get(peer)
            if retry_at is not None and now >= retry_at:
                del self._refused[peer]
                again = True
        if again:
            self._on_slow(peer)

    def watch(self, peer: str, path: Path, times: ProbeTimes) -> None:
        """Judge reads by what the first probe of a way has found."""
        with self._lock:
            self._watches.setdefault((peer, path), RateWatch(times))

    def probed(self, peer: str, path: Path, *, degraded: bool) -> None:
        """A way was probed again."""
        with self._lock:
            watch = self._watches.get((peer, path))
            if watch is not None:
                watch.probed(self._clock(), degraded=degraded)

    def refused(self, peer: str) -> None:
        """A peer could not be attested."""
        with self._lock:
            self._refused[peer] = self._clock() + RETRY_SECONDS_MIN

    def forget(self, peer: str) -> None:
        """A peer is gone."""
        with self._lock:
            self._refused.pop(peer, None)
            self._watches = {key: watch for key, watch in self._watches.items() if key[0] != peer}
