"""The reader's end of one connection."""

import contextlib
import os
import socket
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import structlog

from kvferry.core.errors import Fenced, KvferryError, PeerError, ResourceExhausted, TransportFailed
from kvferry.core.planning.copies import CopyPlan
from kvferry.core.reasons import Reason
from kvferry.device.copying import Window
from kvferry.device.native import stream_discard, stream_receive, stream_send
from kvferry.device.streams import StreamEnd, StreamOutcome
from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.bounds import ReaderBounds
from kvferry_dataplane.packed.job import LeaseClaim, PackJob, new_stop
from kvferry_dataplane.packed.sink import ChunkSink, Landed
from kvferry_dataplane.packed.wire import Status

_NOWHERE = Window(0, 0)
_NO_PIECES = np.empty(0, dtype=np.int64)
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_log = structlog.get_logger("kvferry.dataplane.packed")


@dataclass(frozen=True, slots=True)
class PackPeer:
    """Where one life of a source packs."""

    endpoint: str
    boot_id: bytes


class PackConnection:
    """Asks one source for chunks, several at a time, and receives them in order on a thread of its own.

    Whoever asks also sends, as far as the socket takes it at once; so the next request is at the source before the last
    answer has come.
    """

    def __init__(self, peer: PackPeer, sink: ChunkSink, wake: int, bounds: ReaderBounds) -> None:
        self._peer = peer
        self._sink = sink
        self._wake = wake
        self._bounds = bounds
        self._stop_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._changed = threading.Condition()
        self._jobs: deque[PackJob] = deque()
        self._unsent: deque[bytes] = deque()
        self._socket: socket.socket | None = None
        self._open = False
        self._failure: KvferryError | None = None
        self._next_number = 0
        self._thread = threading.Thread(target=self._run, name="kvferry-pack-read", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more requests: it has failed, or the source closed it while nothing was asked for."""
        with self._changed:
            if self._failure is not None:
                return True
            if not self._open or self._jobs or self._socket is None:
                return False
            try:
                # Nothing is to come on an idle connection: whatever there is, is its end.
                self._socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:
                return True
            return True

    def ask(self, claim: LeaseClaim, batch: CopyPlan) -> PackJob:
        """Ask for a chunk.

        Raises:
            MessageTooLarge: the batch is too large for one request.
            ResourceExhausted: too many requests are in flight.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if len(self._jobs) >= self._bounds.requests_in_flight:
                raise ResourceExhausted.of_field("requests_in_flight", len(self._jobs), "of one source")
            message = wire.encode_request(
                self._next_number, claim.slot, claim.word, batch.source_offsets, batch.lengths
            )
            job = PackJob(self._next_number, claim, batch, new_stop(self._stop_descriptor), self._wake)
            self._next_number += 1
            self._jobs.append(job)
            self._send_what_fits(message)
            self._changed.notify()
        return job

    def close(self) -> None:
        """End it; its jobs fail, and nothing of them is written after this."""
        with self._changed:
            connecting = self._socket is None
        self._fail(PeerError(f"{self._peer.endpoint}: the connection was closed", reason=Reason.PEER_LOST))
        # A thread that is still connecting ends by itself, before it receives anything.
        if connecting:
            self._settle_jobs()
        else:
            self._thread.join()

    def _send_what_fits(self, message: bytes) -> None:
        if self._open and not self._unsent and self._socket is not None:
            try:
                sent = self._socket.send(message, socket.MSG_NOSIGNAL)
            except OSError:
                # Full, or broken: the thread finds out which.
                sent = 0
            message = message[sent:]
        if message:
            self._unsent.append(message)

    # The thread

    def _run(self) -> None:
        try:
            self._connect()
            while (job := self._next_job()) is not None:
                self._flush()
                self._take_answer(job)
                self._forget(job)
        except KvferryError as error:
            self._fail(error)
        except OSError as error:
            self._fail(PeerError(f"{self._peer.endpoint}: {error}"))
        except BaseException as error:
            self._fail(TransportFailed(f"{self._peer.endpoint}: a defect: {error!r}"))
            raise
        finally:
            self._settle_all()

    def _connect(self) -> None:
        host, _, port = self._peer.endpoint.rpartition(":")
        address = (host.removeprefix("[").removesuffix("]"), int(port))
        connection = socket.create_connection(address, self._bounds.connect_seconds)
        # With a time-out, Python waits even where MSG_DONTWAIT is given.
        connection.setblocking(False)
        with self._changed:
            self._socket = connection
            if self._failure is not None:
                raise self._failure
        keep_alive(connection)
        self._send(wire.hello(self._peer.boot_id))
        status = wire.parse_welcome(self._receive(wire.WELCOME_BYTES, self._bounds.connect_seconds))
        if status is not Status.OK:
            raise PeerError(f"{self._peer.endpoint}: {status.name}", reason=Reason.PEER_LOST)
        with self._changed:
            self._open = True

    def _next_job(self) -> PackJob | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._failure is not None)
            return self._jobs[0] if self._failure is None else None

    def _flush(self) -> None:
        """Send what did not fit when it was asked for."""
        while True:
            with self._changed:
                if not self._unsent:
                    return
                message = self._unsent[0]
            self._send(message)
            with self._changed:
                self._unsent.popleft()

    def _take_answer(self, job: PackJob) -> None:
        number, status, total_bytes = wire.parse_answer(self._receive_header(job))
        if number != job.number or (status is Status.OK and total_bytes != job.total_bytes):
            raise TransportFailed(f"{self._peer.endpoint}: answered another request than was asked")
        if status is not Status.OK:
            self._forget(job)
            job.settle(failure=refusal(status, self._peer.endpoint))
            return
        follows_bytes = total_bytes + wire.TRAILER_BYTES
        if not job.begin_receiving():
            self._discard(follows_bytes)
            return
        try:
            landed = self._sink.receive(self._socket_number(), job.batch, wire.TRAILER_BYTES, job.stop)
        except KvferryError as error:
            job.settle(failure=error)
            self._discard(follows_bytes)
            return
        self._conclude(job, landed, follows_bytes)

    def _conclude(self, job: PackJob, landed: Landed, follows_bytes: int) -> None:
        if landed.outcome.end is StreamEnd.CANCELLED:
            job.settle(landed)
            self._discard(follows_bytes - landed.outcome.moved_bytes)
            return
        self._require_complete(landed.outcome)
        number, status = wire.parse_trailer(landed.suffix)
        if number != job.number:
            other = TransportFailed(f"{self._peer.endpoint}: answered another request than was asked")
            # With what has landed: its tail may still write.
            job.settle(landed, other)
            raise other
        self._forget(job)
        job.settle(landed, landed.failure if status is Status.OK else refusal(status, self._peer.endpoint))

    def _forget(self, job: PackJob) -> None:
        """Nothing of a job is to come any more: known before its end is told, so that an idle connection is known."""
        with self._changed:
            if self._jobs and self._jobs[0] is job:
                self._jobs.popleft()

    def _receive_header(self, job: PackJob) -> bytes:
        """The header of an answer; if nobody wants the answer any more, it has to come soon."""
        if job.is_cancelled:
            return self._receive(wire.ANSWER_BYTES, self._bounds.drain_seconds)
        outcome, header = self._receive_part(wire.ANSWER_BYTES, job)
        if outcome.end is StreamEnd.CANCELLED:
            left = wire.ANSWER_BYTES - outcome.moved_bytes
            return header[: outcome.moved_bytes] + self._receive(left, self._bounds.drain_seconds)
        self._require_complete(outcome)
        return header

    def _receive_part(self, size_bytes: int, job: PackJob) -> tuple[StreamOutcome, bytes]:
        return stream_receive(
            self._socket_number(),
            _NOWHERE,
            _NO_PIECES,
            _NO_PIECES,
            suffix_bytes=size_bytes,
            limit_s=-1.0,
            flag=job.stop.flag,
            wake_descriptor=job.stop.descriptor,
        )

    def _receive(self, size_bytes: int, limit_s: float) -> bytes:
        outcome, message = stream_receive(
            self._socket_number(), _NOWHERE, _NO_PIECES, _NO_PIECES, suffix_bytes=size_bytes, limit_s=limit_s
        )
        self._require_complete(outcome)
        return message

    def _discard(self, size_bytes: int) -> None:
        outcome = stream_discard(self._socket_number(), size_bytes, limit_s=self._bounds.drain_seconds)
        self._require_complete(outcome)

    def _send(self, message: bytes) -> None:
        limit_s = self._bounds.connect_seconds
        self._require_complete(
            stream_send(self._socket_number(), message, _NOWHERE, _NO_PIECES, _NO_PIECES, limit_s=limit_s)
        )

    def _require_complete(self, outcome: StreamOutcome) -> None:
        if outcome.end is StreamEnd.COMPLETE:
            return
        why = os.strerror(outcome.error_number) if outcome.error_number else outcome.end.name.lower().replace("_", " ")
        raise PeerError(f"{self._peer.endpoint}: the connection ended: {why}", reason=Reason.PEER_LOST)

    def _socket_number(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    # Its end

    def _fail(self, error: KvferryError) -> None:
        with self._changed:
            self._open = False
            if self._failure is None:
                self._failure = error
                _log.info("pack connection ended", source=self._peer.endpoint, why=error.message)
            if self._socket is not None:
                # The other end may have been faster.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()

    def _settle_all(self) -> None:
        """On the thread, as it ends: nothing is received any more."""
        with self._changed:
            connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
        self._settle_jobs()
        os.close(self._stop_descriptor)

    def _settle_jobs(self) -> None:
        with self._changed:
            jobs = list(self._jobs)
            self._jobs.clear()
            self._unsent.clear()
        for job in jobs:
            job.settle(failure=self._failure)


def keep_alive(connection: socket.socket) -> None:
    """Send at once, and find out in time that the source's host has died."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def refusal(status: Status, endpoint: str) -> KvferryError:
    """Why a source that answers so gives nothing."""
    match status:
        case Status.FENCED:
            return Fenced(f"the lease on {endpoint} ended while it was read")
        case Status.BUSY:
            return ResourceExhausted(f"{endpoint}: the source has no staging slot free")
        case _:
            return TransportFailed(f"{endpoint}: the source refuses: {status.name}")
