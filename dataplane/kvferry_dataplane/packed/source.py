"""How a source gets the pieces of a chunk into a stream: straight out of host memory, or packed by a copier first."""

import time
from typing import Protocol

import numpy as np

from kvferry.core.errors import TransportFailed
from kvferry.core.planning.copies import Offsets
from kvferry.device.copying import CopyJob, Window
from kvferry.device.native import stream_send
from kvferry.device.streams import StreamOutcome
from kvferry_dataplane.packed.staging import Slot, Staging

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

    def __init__(self, staging: Staging, staging_seconds: float) -> None:
        self._staging = staging
        self._staging_seconds = staging_seconds

    def send(self, connection: int, head: bytes, offsets: Offsets, lengths: Offsets, limit_s: float) -> StreamOutcome:
        """Pack the pieces and send them."""
        total = int(lengths.sum())
        slot = self._staging.slots.take(total, self._staging_seconds)
        try:
            pack(self._staging, slot, offsets, lengths, limit_s)
            start = np.zeros(1, dtype=np.int64)
            return stream_send(connection, head, slot.host, start, np.array([total]), limit_s=limit_s)
        finally:
            self._staging.slots.give_back(slot)


def pack(staging: Staging, slot: Slot, offsets: Offsets, lengths: Offsets, limit_s: float) -> None:
    """Pack pieces into a slot. When it returns or raises, nothing more is read from the pool.

    Raises:
        InvalidArgument: a piece leaves the pool.
        ResourceExhausted: the copier has too much to do.
        TransportFailed: it failed, or took too long.
    """
    if not _wait(staging.pack(slot, offsets, lengths), limit_s):
        raise TransportFailed(f"packing {int(lengths.sum())} bytes took more than {limit_s:g} s")


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
