"""The agent of the packed path."""

from itertools import count

from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.packed.job import LeaseClaim, PackJob
from kvferry_dataplane.packed.reader import PackReader
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.reads.request import ReadPart

CELL_COUNT = 1024
_WORD_HANDLE = 0
"""Of every word: the source has looked at it before."""


class PackedAgent:
    """A :class:`~kvferry_dataplane.reads.agent.ReadAgent` of sources that pack."""

    def __init__(self, reader: PackReader) -> None:
        self._reader = reader
        self._jobs: dict[int, PackJob] = {}
        self._handles = count(_WORD_HANDLE + 1)
        self._cells: dict[int, int] = {}

    @property
    def cell_count(self) -> int:
        """Words that can be kept at a time."""
        return CELL_COUNT

    @property
    def wakes(self) -> bool:
        """True: connections tell of the end of every batch."""
        return True

    def connect(self, peer: Peer) -> None:
        """A connection is made by its first batch."""

    def disconnect(self, peer: Peer) -> None:
        """Close the connection."""
        if peer.pack is not None:
            self._reader.disconnect(peer.pack)

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int) -> int:
        """Ask for a batch; a connection answers in order."""
        assert isinstance(batch, CopyPlan)
        assert source.peer.pack is not None
        job = self._reader.read(source.peer.pack, LeaseClaim(source.slot, source.word), batch)
        handle = next(self._handles)
        self._jobs[handle] = job
        return handle

    def read_word(self, source: ReadPart, cell: int) -> int:
        """The word as the source has seen it: of every batch it looked after the last byte had left its pool.

        A batch whose lease did not hold then has failed as FENCED; so all of them held while their bytes were taken.
        """
        self._cells[cell] = source.word
        return _WORD_HANDLE

    def word(self, cell: int) -> int:
        """What was seen."""
        return self._cells[cell]

    def is_done(self, handle: int) -> bool:
        """Whether a batch has arrived, or was stopped and writes no more."""
        if handle == _WORD_HANDLE:
            return True
        try:
            done = self._jobs[handle].done
        except BaseException:
            del self._jobs[handle]
            raise
        if done:
            del self._jobs[handle]
        return done

    def device_seconds(self, handle: int) -> float:
        """0: sockets bring the bytes."""
        return 0.0

    def stop(self, handle: int) -> bool:
        """Cancel a batch."""
        self._jobs[handle].cancel()
        return True

    def close(self) -> None:
        """Close every connection: nothing arrives after this."""
        self._reader.close()
        self._jobs.clear()
