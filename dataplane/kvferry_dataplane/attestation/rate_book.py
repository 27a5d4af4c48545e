"""The watches over all ways that reads take, and who is told when one is slow."""

import threading
import time
from collections.abc import Callable

from kvferry_dataplane.attestation.rate_watch import ProbeTimes, RateWatch
from kvferry_dataplane.paths import Path


class RateBook:
    """Watches by peer and path. The reads' thread tells of reads, the event loop of probes."""

    def __init__(self, on_slow: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """``on_slow`` is called, on the reads' thread, with the name of a peer that is to be probed again."""
        self._on_slow = on_slow
        self._clock = clock
        self._lock = threading.Lock()
        self._watches: dict[tuple[str, Path], RateWatch] = {}

    def carried(self, peer: str, path: Path, piece_count: int, total_bytes: int, seconds: float) -> None:
        """A read has brought what it wanted from a peer."""
        with self._lock:
            watch = self._watches.get((peer, path))
            is_slow = watch is not None and watch.carried(piece_count, total_bytes, seconds, self._clock())
        if is_slow:
            self._on_slow(peer)

    def watch(self, peer: str, path: Path, times: ProbeTimes) -> None:
        """Judge reads by what the first probe of a way has found."""
        with self._lock:
            self._watches.setdefault((peer, path), RateWatch(times))

    def probed(self, peer: str, path: Path, *, found_slow: bool) -> None:
        """A way was probed again."""
        with self._lock:
            watch = self._watches.get((peer, path))
            if watch is not None:
                watch.probed(self._clock(), found_slow=found_slow)

    def forget(self, peer: str) -> None:
        """A peer is gone."""
        with self._lock:
            self._watches = {key: watch for key, watch in self._watches.items() if key[0] != peer}
