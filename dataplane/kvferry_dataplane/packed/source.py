"""How a source gets the pieces of a chunk into a stream: straight out of host memory, or packed by a copier first."""

import time
from typing import Protocol

import numpy as np

from kvferry.core.errors import TransportFailed
from kvferry.core.planning.copies import CopyPlan, Offsets
from kvferry.device.copying import Copier, CopyJob, Window
from kvferry.device.native import stream_send
from kvferry.device.streams import StreamOutcome
from kvferry_dataplane.packed.staging import StagingSlots

_PACKED_POLL_SECONDS = 20e-6


class ChunkSource(Protocol):
    """Sends pieces of the pool."""

    def send(self, connection: int, head: bytes, offsets: Offsets, lengths: Offsets, limit_s: float) -> StreamOutcome:
        """Send ``head`` and then the pieces. When it returns, nothing more is read from the pool.

        Raises:
            InvalidArgument: a piece leaves the pool. Nothing was sent.
            ResourceExhausted: no staging slot became free. Nothing was sent.
            TransportFailed: the pieces cannot be packed. Nothing was sent.
        """
        ...


class HostSource:
    """A pool in host memory: the kernel gathers the pieces itself."""

    def __init__(self, pool: Window) -> None:
        self._pool = pool

    def send(self, connection: int, head: bytes, offsets: Offsets, lengths: Offsets, limit_s: float) -> StreamOutcome:
        """Send the pieces out of the pool."""
        return stream_send(connection, head, self._pool, offsets, lengths, limit_s=limit_s)


class PackingSource:
    """A pool that only a copier reaches: the chunk is packed into a staging slot, and sent from there."""

    def __init__(self, pool: Window, copier: Copier, slots: StagingSlots, staging_seconds: float) -> None:
        self._pool = pool
        self._copier = copier
        self._slots = slots
        self._staging_seconds = staging_seconds

    def send(self, connection: int, head: bytes, offsets: Offsets, lengths: Offsets, limit_s: float) -> StreamOutcome:
        """Pack the pieces and send them."""
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if ends.size else 0
        slot = self._slots.take(total, self._staging_seconds)
        try:
            packed = CopyPlan(offsets, ends - lengths, lengths)
            if not _wait(self._copier.submit(self._pool, slot, [packed]), limit_s):
                raise TransportFailed(f"packing {total} bytes took more than {limit_s:g} s")
            start = np.zeros(1, dtype=np.int64)
            return stream_send(connection, head, slot, start, np.array([total]), limit_s=limit_s)
        finally:
            self._slots.give_back(slot)


def _wait(job: CopyJob, seconds: float) -> bool:
    """Wait until a job touches nothing any more; False if it had to be cancelled."""
    until = time.monotonic() + seconds
    cancelled = False
    while not job.done:
        if not cancelled and time.monotonic() > until:
            job.cancel()
            cancelled = True
        # Device copiers have nothing to wait on.
        time.sleep(_PACKED_POLL_SECONDS)
    return not cancelled
