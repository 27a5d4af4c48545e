"""The agent of the packed path."""

from itertools import count

import structlog

from kvferry.core.errors import KvferryError
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import CopyJob
from kvferry_dataplane.packed.ending import wait_for_end
from kvferry_dataplane.packed.job import LeaseClaim, PackJob
from kvferry_dataplane.packed.reader import PackReader
from kvferry_dataplane.packed.slot_job import SlotJob
from kvferry_dataplane.packed.slot_reader import SlotReader
from kvferry_dataplane.paths import PackWire, WireRule
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.reads.request import ReadPart

CELL_COUNT = 1024
_log = structlog.get_logger("kvferry.dataplane.packed")
_WORD_HANDLE = 0
"""Of every word: the source has looked at it before."""


class PackedAgent:
    """A :class:`~kvferry_dataplane.reads.agent.ReadAgent` of sources that pack."""

    def __init__(self, reader: PackReader, slots: SlotReader, wire: WireRule) -> None:
        self._reader = reader
        self._slots = slots
        self._wire = wire
        self._jobs: dict[int, PackJob | SlotJob] = {}
        self._polled: dict[int, SlotJob] = {}
        self._handles = count(_WORD_HANDLE + 1)
        self._cells: dict[int, int] = {}

    @property
    def cell_count(self) -> int:
        """Words that can be kept at a time."""
        return CELL_COUNT

    @property
    def wakes(self) -> bool:
        """Whether everything under way tells of its end: connections do, copiers on devices do not."""
        return all(job.wakes for job in self._jobs.values())

    def connect(self, peer: Peer) -> None:
        """A connection is made by its first batch."""

    def disconnect(self, peer: Peer) -> None:
        """Close the connection."""
        if peer.pack is not None:
            self._reader.disconnect(peer.pack)
            self._slots.disconnect(peer)

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int, *, awaited: bool = False) -> int:
        """Ask for a batch."""
        assert isinstance(batch, CopyPlan)
        assert source.peer.pack is not None
        claim = LeaseClaim(source.slot, source.word)
        handle = next(self._handles)
        if self._wire.of(source.peer.pack_slots is not None) is PackWire.NIXL:
            self._jobs[handle] = self._polled[handle] = self._slots.read(source.peer, claim, batch)
        else:
            self._jobs[handle] = self._reader.read(source.peer.pack, claim, batch)
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
        # All of them at a time: the oldest stands for the others.
        if handle == next(iter(self._polled), None):
            self._slots.poll()
        try:
            done = self._jobs[handle].done
        except BaseException:
            self._forget(handle)
            raise
        if done:
            self._forget(handle)
        return done

    def wait(self, handle: int, seconds: float) -> None:
        """Nothing: what is under way wakes the thread."""

    def device_seconds(self, handle: int) -> float:
        """0: sockets bring the bytes."""
        return 0.0

    def stop(self, handle: int) -> bool:
        """Cancel a batch."""
        self._jobs[handle].cancel()
        return True

    def close(self) -> None:
        """Close every connection and end every copy: nothing arrives after this.

        Raises:
            TransportFailed: a copy did not end in time.
        """
        self._slots.close()
        self._reader.close()
        for job in self._jobs.values():
            job.cancel()
        wait_for_end(self._have_ended)
        self._polled.clear()

    def _have_ended(self) -> bool:
        self._jobs = {handle: job for handle, job in self._jobs.items() if not _has_ended(job)}
        return not self._jobs

    def _forget(self, handle: int) -> None:
        del self._jobs[handle]
        self._polled.pop(handle, None)


def _has_ended(job: CopyJob) -> bool:
    try:
        return job.done
    except KvferryError as error:
        _log.info("a batch failed as its agent was closed", message=error.message)
        return True
