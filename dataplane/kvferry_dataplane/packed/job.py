"""A chunk that is asked of a source."""

import os
import threading
from dataclasses import dataclass, field

from kvferry.core.errors import KvferryError
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import CopyJob
from kvferry.device.native import CancelFlag
from kvferry_dataplane.packed.sink import Landed, Stop


@dataclass(frozen=True, slots=True)
class LeaseClaim:
    """The lease that a request names."""

    slot: int
    word: int = field(repr=False)


class PackJob(CopyJob):
    """A chunk under way. Its connection's thread moves it on, any other may ask and cancel."""

    def __init__(self, number: int, claim: LeaseClaim, batch: CopyPlan, stop: Stop, wake: int) -> None:
        """``stop`` ends its receive; ``wake`` is an eventfd that is told of its end, -1 for none."""
        self.number = number
        self.claim = claim
        self.batch = batch
        self.total_bytes = batch.total_bytes
        self.stop = stop
        self._wake = wake
        self._lock = threading.Lock()
        self._receiving = False
        self._settled = False
        self._landed: Landed | None = None
        self._failure: KvferryError | None = None

    @property
    def done(self) -> bool:
        """Whether nothing of it writes to the pool any more.

        Raises:
            Fenced: the source says that the lease ended.
            PeerError: the source is gone, or was never there.
            ResourceExhausted: the source has no room for it.
            TransportFailed: something else went wrong.
        """
        if not self._settled or not self._tail_is_done():
            return False
        if self._failure is not None:
            raise self._failure
        return True

    @property
    def copied_bytes(self) -> int:
        """Bytes that are in place; all of them once it is done and was not cancelled before."""
        landed = self._landed
        if landed is None:
            return 0
        if landed.is_staged:
            return 0 if landed.tail is None else landed.tail.copied_bytes
        return min(landed.outcome.moved_bytes, self.total_bytes)

    @property
    def wakes(self) -> bool:
        """Whether the next thing to happen is signalled; else it has to be polled."""
        landed = self._landed
        return landed is None or landed.tail is None or landed.tail_wakes

    def cancel(self) -> None:
        """Ask for an early end: at once if nothing is written yet, else between two system calls."""
        with self._lock:
            if self._settled:
                if self._landed is not None and self._landed.tail is not None:
                    self._landed.tail.cancel()
                return
            self.stop.flag.raise_()
            receiving = self._receiving
            # Within the lock: the descriptor is closed once every job has settled.
            os.eventfd_write(self.stop.descriptor, 1)
        if not receiving:
            self.settle()

    # For the connection's thread

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants it any more."""
        return self.stop.flag.raised

    def begin_receiving(self) -> bool:
        """Whether its bytes may be written to the pool from now on; False if it was cancelled."""
        with self._lock:
            self._receiving = not self._settled and not self.stop.flag.raised
            return self._receiving

    def settle(self, landed: Landed | None = None, failure: KvferryError | None = None) -> None:
        """It has come to its end, but for the tail. The first end counts."""
        with self._lock:
            if self._settled:
                return
            self._landed, self._failure = landed, failure
            self._settled = True
            if landed is not None and landed.tail is not None and self.stop.flag.raised:
                landed.tail.cancel()
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _tail_is_done(self) -> bool:
        landed = self._landed
        if landed is None or landed.tail is None:
            return True
        if not landed.tail.done:
            return False
        landed.release()
        return True


def new_stop(descriptor: int) -> Stop:
    """What ends one job's receive on the connection that is woken by ``descriptor``."""
    return Stop(CancelFlag(), descriptor)
