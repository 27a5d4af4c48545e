"""The agent of the local path: copies out of mapped pools, and reads lease words where they lie."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from kvferry.device.copying import CopyJob
from kvferry_dataplane.peers import Peer, peer_lost
from kvferry_dataplane.reads.batches import Batch, Regions
from kvferry_dataplane.reads.request import ReadPart
from kvferry_dataplane.sharing.book import SharedSources
from kvferry_dataplane.sharing.source import Source

CELL_COUNT = 1024
_WORD_HANDLE = 0
"""Of every word: it has been read when it is asked for."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy under way, and what it copies from."""

    job: CopyJob
    source: Source
    wakes: bool


class LocalAgent:
    """A :class:`~kvferry_dataplane.reads.agent.ReadAgent` of mapped pools."""

    def __init__(self, sources: SharedSources, end_copies: Callable[[], None]) -> None:
        """``end_copies`` ends every copy under way, for good."""
        self._sources = sources
        self._end_copies = end_copies
        self._handles = count(_WORD_HANDLE + 1)
        self._copies: dict[int, _Copy] = {}
        self._device_seconds: dict[int, float] = {}
        self._cells: dict[int, int] = {}

    @property
    def cell_count(self) -> int:
        """Words that can be kept at a time."""
        return CELL_COUNT

    @property
    def wakes(self) -> bool:
        """Whether every copy under way wakes the thread at its end."""
        return all(copy.wakes for copy in self._copies.values())

    def connect(self, peer: Peer) -> None:
        """Peers are mapped by the book of sources."""

    def disconnect(self, peer: Peer) -> None:
        """Peers are unmapped by the book of sources."""

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int, *, awaited: bool = False) -> int:
        """Start copying a plan."""
        assert isinstance(batch, Regions)
        mapped = self._sources.source(source.peer)
        pool = mapped.pool
        job = pool.copier.submit(pool.source, pool.destination, batch.copies, priority=priority, silent=awaited)
        mapped.users += 1
        handle = next(self._handles)
        self._copies[handle] = _Copy(job, mapped, wakes=pool.copier.wakes and not awaited)
        return handle

    def read_word(self, source: ReadPart, cell: int) -> int:
        """Read the lease word, then see whether its owner lives.

        In this order: a dead source's word stays as it was, while the engine, which maps the pool as well, may use the
        blocks anew once it has heard of the death. A source that lives after its word was read lived before, and
        had not cleared the word when the last byte had been copied.
        """
        mapped = self._sources.source(source.peer)
        self._cells[cell] = mapped.word(source.slot)
        if not mapped.is_alive:
            raise peer_lost(source.peer)
        return _WORD_HANDLE

    def word(self, cell: int) -> int:
        """What was read."""
        return self._cells[cell]

    def is_done(self, handle: int) -> bool:
        """Whether a copy has ended, or was stopped and has ended early."""
        if handle == _WORD_HANDLE:
            return True
        copy = self._copies[handle]
        try:
            if not copy.job.done:
                return False
        except BaseException:
            self._forget(handle)
            raise
        self._device_seconds[handle] = copy.job.device_seconds
        self._forget(handle)
        return True

    def wait(self, handle: int, seconds: float) -> None:
        """Wait so long for a copy."""
        copy = self._copies.get(handle)
        if copy is not None and seconds > 0:
            copy.job.wait(seconds)

    def device_seconds(self, handle: int) -> float:
        """How long a device was at a copy that is done."""
        return self._device_seconds.pop(handle, 0.0)

    def stop(self, handle: int) -> bool:
        """Cancel a copy: it ends between two pieces."""
        self._copies[handle].job.cancel()
        return True

    def close(self) -> None:
        """End every copy, then unmap everything."""
        self._end_copies()
        for handle in list(self._copies):
            self._forget(handle)
        self._sources.close()

    def _forget(self, handle: int) -> None:
        self._sources.release(self._copies.pop(handle).source)
