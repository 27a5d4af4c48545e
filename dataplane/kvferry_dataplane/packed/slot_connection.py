"""The reader's end of one connection to a source that holds chunks in staging slots."""

import contextlib
import socket
from collections import deque

import structlog

from kvferry.core.errors import KvferryError, PeerError, TransportFailed
from kvferry.core.planning.copies import CopyPlan
from kvferry.core.reasons import Reason
from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.bounds import ReaderBounds
from kvferry_dataplane.packed.connection import refusal
from kvferry_dataplane.packed.job import LeaseClaim
from kvferry_dataplane.packed.slot_job import SlotJob
from kvferry_dataplane.packed.slot_opening import SlotOpening
from kvferry_dataplane.packed.staging import Staging
from kvferry_dataplane.packed.staging_reads import StagingRead, StagingReads
from kvferry_dataplane.packed.wire import Held, Kind, Status
from kvferry_dataplane.peers import Peer

_RECEIVE_BYTES = 4096
_log = structlog.get_logger("kvferry.dataplane.packed")


class SlotConnection:
    """Asks one source for chunks, a few at a time, and moves them on whenever it is polled. Never blocks.

    A job goes through: asked for, held by the source, read into a slot of one's own, scattered and released at once,
    confirmed. Belongs to the reads' thread.
    """

    def __init__(self, peer: Peer, staging: Staging, reads: StagingReads, bounds: ReaderBounds) -> None:
        assert peer.pack is not None
        self._peer = peer
        self._staging = staging
        self._reads = reads
        self._bounds = bounds
        self._opening: SlotOpening | None = SlotOpening(peer.pack, bounds.connect_seconds)
        self._socket: socket.socket | None = None
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._queue: deque[SlotJob] = deque()
        self._jobs: dict[int, SlotJob] = {}
        self._unwanted: set[int] = set()
        self._next_number = 0
        self._now = 0.0
        self.failure: KvferryError | None = None
        """Why it has ended, once it has."""

    def ask(self, claim: LeaseClaim, batch: CopyPlan) -> SlotJob:
        """Ask for a chunk."""
        job = SlotJob(claim, batch, self._cancelled)
        self._queue.append(job)
        return job

    def poll(self, now: float) -> None:
        """Do what can be done at once."""
        self._now = now
        if self.failure is not None:
            self._finish_tails()
            return
        try:
            if self._opening is not None:
                self._socket = self._opening.take()
                self._opening = None if self._socket is not None else self._opening
            if self._socket is not None:
                self._ask_more()
                self._send(self._socket)
                self._receive(self._socket)
            for job in list(self._jobs.values()):
                self._move_on(job)
            if self._socket is not None:
                self._send(self._socket)
        except KvferryError as error:
            self._end(error)

    def close(self, why: str) -> None:
        """End it; its jobs fail."""
        self._end(PeerError(f"{self._peer.name}: {why}", reason=Reason.PEER_LOST))

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and nothing of its jobs writes any more."""
        return self.failure is not None and not self._jobs

    # Messages

    def _ask_more(self) -> None:
        while self._queue and len(self._jobs) + len(self._unwanted) < self._bounds.held_in_flight:
            job = self._queue.popleft()
            job.number = self._next_number
            self._next_number += 1
            claim, batch = job.claim, job.batch
            try:
                message = wire.encode_request(
                    job.number, claim.slot, claim.word, batch.source_offsets, batch.lengths, Kind.HOLD
                )
            except KvferryError as error:
                job.failure = error
                continue
            self._jobs[job.number] = job
            self._outgoing += message

    def _send(self, connection: socket.socket) -> None:
        while self._outgoing:
            try:
                sent = connection.send(self._outgoing, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                raise self._lost(error.strerror or "failed") from error
            del self._outgoing[:sent]

    def _receive(self, connection: socket.socket) -> None:
        try:
            while received := connection.recv(_RECEIVE_BYTES):
                self._incoming += received
                if len(received) < _RECEIVE_BYTES:
                    break
            else:
                raise self._lost("the source closed it")
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost(error.strerror or "failed") from error
        while len(self._incoming) >= wire.HELD_BYTES:
            held = wire.parse_held(bytes(self._incoming[: wire.HELD_BYTES]))
            del self._incoming[: wire.HELD_BYTES]
            self._take(held)

    def _take(self, held: Held) -> None:
        job = self._jobs.get(held.number)
        if held.number in self._unwanted:
            if held.kind is Kind.RELEASE or held.status is not Status.OK:
                self._unwanted.remove(held.number)
            else:
                self._release(held.number)
        elif job is None:
            raise TransportFailed(f"{self._peer.name}: answers what was not asked")
        elif held.status is not Status.OK:
            del self._jobs[held.number]
            assert self._peer.pack is not None
            job.failure = refusal(held.status, self._peer.pack.endpoint)
        elif held.kind is Kind.RELEASE:
            job.confirmed = True
        else:
            job.address = self._checked(held, job)

    def _checked(self, held: Held, job: SlotJob) -> int:
        slots = self._peer.pack_slots
        assert slots is not None
        inside = slots.address <= held.address <= slots.address + slots.size_bytes - held.total_bytes
        if job.address is not None or held.total_bytes != job.total_bytes or not inside:
            raise TransportFailed(f"{self._peer.name}: holds something else than was asked for")
        return held.address

    def _release(self, number: int) -> None:
        if self.failure is None:
            self._outgoing += wire.encode_release(number)

    # Jobs

    def _move_on(self, job: SlotJob) -> None:
        if job.address is not None and job.read is None:
            slot = self._staging.slots.take_if_free(job.total_bytes)
            if slot is None:
                return
            job.read = self._reads.start(self._peer, job.address, slot, job.total_bytes)
        read = job.read
        if read is not None and read.failure is not None:
            raise read.failure
        if read is not None and read.done and job.tail is None:
            self._scatter(job, read)
        self._finish_tail(job)
        if job.slot is None and job.tail is not None and (job.confirmed or job.cancelled):
            del self._jobs[job.number]
            if job.cancelled and not job.confirmed:
                self._unwanted.add(job.number)

    def _scatter(self, job: SlotJob, read: StagingRead) -> None:
        # The source may use its slot anew at once. What is scattered is good only if it says that it had not before.
        self._release(job.number)
        job.slot = read.slot
        try:
            job.tail = self._staging.scatter(read.slot, job.batch)
        except KvferryError:
            self._give_back(job)
            raise

    def _finish_tail(self, job: SlotJob) -> None:
        if job.slot is None or job.tail is None:
            return
        try:
            if job.tail.done:
                self._give_back(job)
        except KvferryError:
            # The device has failed: nothing of it writes any more.
            self._give_back(job)
            raise

    def _give_back(self, job: SlotJob) -> None:
        if job.slot is not None:
            self._staging.slots.give_back(job.slot)
            job.slot = None

    def _cancelled(self, job: SlotJob) -> None:
        self._drop(job)
        if not self._queue and all(job.cancelled for job in self._jobs.values()):
            # What is still on its way is nobody's: the end of the connection tells the source at once.
            self.close("nobody waits for it")

    def _drop(self, job: SlotJob) -> None:
        """A job shall write no more."""
        if job in self._queue:
            self._queue.remove(job)
        elif job.tail is not None:
            job.tail.cancel()
        elif job.number in self._jobs:
            del self._jobs[job.number]
            self._unwanted.add(job.number)
            if job.read is not None:
                number = job.number
                self._reads.give_up(job.read, self._now, lambda: self._release(number))
            elif job.address is not None:
                self._release(job.number)

    # Its end

    def _lost(self, why: str) -> PeerError:
        return PeerError(f"{self._peer.name}: the connection ended: {why}", reason=Reason.PEER_LOST)

    def _end(self, error: KvferryError) -> None:
        if self.failure is not None:
            return
        error.let_go()
        self.failure = error
        _log.info("slot connection ended", source=self._peer.name, why=error.message)
        for job in [*self._queue, *self._jobs.values()]:
            self._drop(job)
            if not job.cancelled:
                job.failure = error
        if self._opening is not None:
            self._opening.give_up()
        if self._socket is not None:
            # A second descriptor, of connections that are kept when an agent is destroyed, must not hide the end.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._opening = self._socket = None
        self._finish_tails()

    def _finish_tails(self) -> None:
        """Take the slots of what was being scattered back as it ends."""
        for job in list(self._jobs.values()):
            try:
                self._finish_tail(job)
            except KvferryError as error:
                job.failure = error
            if job.slot is None:
                del self._jobs[job.number]
