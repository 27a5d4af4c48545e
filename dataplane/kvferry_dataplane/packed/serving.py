"""One reader's connection, as the source sees it."""

import contextlib
import select
import socket
import time
from collections import deque

import numpy as np
import numpy.typing as npt
import structlog

from kvferry.core.errors import CallerError, InvalidArgument, KvferryError, ResourceExhausted
from kvferry.core.planning.copies import Offsets
from kvferry.device.copying import Window
from kvferry.device.native import stream_receive, stream_send
from kvferry.device.streams import StreamEnd
from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.bounds import ServerBounds
from kvferry_dataplane.packed.holding import HeldSlots
from kvferry_dataplane.packed.source import ChunkSource, pack
from kvferry_dataplane.packed.staging import Slot, Staging
from kvferry_dataplane.packed.wire import Held, Kind, RequestHeader, Status

_NOWHERE = Window(0, 0)
_NO_PIECES = np.empty(0, dtype=np.int64)
_SLOT_POLL_MS = 1
_log = structlog.get_logger("kvferry.dataplane.packed")


class _Ended(Exception):
    """The connection is over, for the reason given."""


class PackServing:
    """Answers the requests of one connection, one after the other, until it ends."""

    def __init__(
        self,
        connection: socket.socket,
        reader: str,
        boot_id: bytes,
        words: npt.NDArray[np.uint64],
        source: ChunkSource,
        staging: Staging | None,
        bounds: ServerBounds,
    ) -> None:
        """``staging``: where chunks are held for readers that ask for that; None: nowhere."""
        self._connection = connection
        self._reader = reader
        self._boot_id = boot_id
        self._words = words
        self._source = source
        self._staging = staging
        self._held = None if staging is None else HeldSlots(staging)
        self._waiting: deque[tuple[RequestHeader, bytes]] = deque()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._bounds = bounds
        self._stranger_until = time.monotonic() + bounds.stranger_seconds
        self._refusals = 0
        self.sent_bytes = 0
        """Bytes of pieces sent."""
        self.is_stranger = True
        """Whether it has not named a live lease yet."""

    def end(self) -> None:
        """End it, from any thread."""
        # It may have ended by itself.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Close it without serving it."""
        self._connection.close()

    def run(self) -> None:
        """Serve until the reader leaves, breaks the rules, or :meth:`end` is called."""
        with self._connection:
            try:
                self._greet()
                while True:
                    self._serve(*(self._waiting.popleft() if self._waiting else self._next_request()))
            except _Ended as ended:
                _log.info("pack connection ended", reader=self._reader, why=str(ended))
            finally:
                if self._held is not None:
                    self._held.close()

    def _greet(self) -> None:
        message = self._receive(wire.HELLO_BYTES, self._patience())
        if message[: len(wire.MAGIC)] != wire.MAGIC:
            raise _Ended("it does not speak this protocol")
        same_life = message[len(wire.MAGIC) :] == self._boot_id
        self._send(wire.welcome(Status.OK if same_life else Status.OTHER_LIFE))
        if not same_life:
            raise _Ended("it looks for another life of this data plane")

    def _next_request(self) -> tuple[RequestHeader, bytes]:
        patience = self._patience()
        if not patience:
            raise _Ended("it took too long to name a lease, or to read a slot")
        message = self._receive(wire.REQUEST_HEADER_BYTES, patience)
        try:
            header = wire.parse_request_header(message)
        except CallerError as error:
            raise _Ended(error.message) from error
        return header, self._receive(header.body_bytes, self._bounds.message_seconds)

    def _patience(self) -> float:
        """How long the next request may take."""
        if self.is_stranger:
            return max(self._stranger_until - time.monotonic(), 0.0)
        since = None if self._held is None else self._held.since
        if since is not None:
            return max(since + self._bounds.held_seconds - time.monotonic(), 0.0)
        # Who has shown a lease once may take its time; a peer whose host has died is found by TCP's keep-alive.
        return -1.0

    def _serve(self, header: RequestHeader, body: bytes) -> None:
        if header.kind is Kind.RELEASE:
            self._release(header)
            return
        if not self._lease_stands(header):
            self._refuse(header, Status.FENCED)
            return
        self.is_stranger = False
        try:
            offsets, lengths = wire.parse_pieces(header, body)
            serve = self._send_chunk if header.kind is Kind.SEND else self._hold_chunk
            serve(header, offsets, lengths)
        except KvferryError as error:
            _log.warning("pack request refused", reader=self._reader, reason=error.reason, message=error.message)
            self._refuse(header, _status_of(error))
            return
        self._refusals = 0

    def _send_chunk(self, header: RequestHeader, offsets: Offsets, lengths: Offsets) -> None:
        head = wire.answer(header.number, Status.OK, header.total_bytes)
        sent = self._source.send(self._connection.fileno(), head, offsets, lengths, self._bounds.send_seconds)
        if sent.end is not StreamEnd.COMPLETE:
            raise _Ended(f"{sent.end.name} after {sent.moved_bytes} bytes of an answer")
        self.sent_bytes += header.total_bytes
        # Only now: if the word stands after the last byte was taken, the blocks were pinned all the while.
        self._send(wire.trailer(header.number, Status.OK if self._lease_stands(header) else Status.FENCED))

    def _hold_chunk(self, header: RequestHeader, offsets: Offsets, lengths: Offsets) -> None:
        if self._staging is None or self._held is None:
            raise InvalidArgument.of_field("kind", header.kind.name, "this source has no staging slots")
        if header.number in self._held:
            raise _Ended("it asks twice under one number")
        slot = self._slot_for(header, self._held)
        try:
            pack(self._staging, slot, offsets, lengths, self._bounds.send_seconds)
        except BaseException:
            self._staging.slots.give_back(slot)
            raise
        # Only now, as above.
        status = Status.OK if self._lease_stands(header) else Status.FENCED
        self._held.hold(header.number, slot)
        if status is not Status.OK:
            self._held.release(header.number)
        self._send(wire.encode_held(Held(header.number, slot.host.address, header.total_bytes, status, Kind.HOLD)))

    def _slot_for(self, header: RequestHeader, held: HeldSlots) -> Slot:
        """A slot; while none is free, takes in what the reader sends: it may be what releases one."""
        until = time.monotonic() + self._bounds.staging_seconds
        while (slot := held.take(header.total_bytes)) is None:
            if time.monotonic() > until:
                raise ResourceExhausted("every staging slot is in use")
            if self._poll.poll(_SLOT_POLL_MS):
                request = self._next_request()
                if request[0].kind is Kind.RELEASE:
                    self._release(request[0])
                else:
                    self._waiting.append(request)
                if len(self._waiting) > self._bounds.waiting_max:
                    raise _Ended("it asks for more than a reader may at a time")
        return slot

    def _release(self, header: RequestHeader) -> None:
        if self._held is None or not self._held.release(header.number):
            raise _Ended("it releases what it does not hold")
        self._send(wire.encode_held(Held(header.number, 0, 0, Status.OK, Kind.RELEASE)))

    def _lease_stands(self, header: RequestHeader) -> bool:
        # Zero is what a free slot holds.
        if not header.word or header.slot >= self._words.size:
            return False
        return int(self._words[header.slot]) == header.word

    def _refuse(self, header: RequestHeader, status: Status) -> None:
        self._refusals += 1
        held = Held(header.number, 0, 0, status, Kind.HOLD)
        self._send(wire.encode_held(held) if header.kind is Kind.HOLD else wire.answer(header.number, status))
        if self._refusals >= self._bounds.refusals_max:
            raise _Ended(f"{self._refusals} of its requests were refused in a row")

    def _receive(self, size_bytes: int, limit_s: float) -> bytes:
        outcome, message = stream_receive(
            self._connection.fileno(), _NOWHERE, _NO_PIECES, _NO_PIECES, suffix_bytes=size_bytes, limit_s=limit_s
        )
        if outcome.end is not StreamEnd.COMPLETE:
            raise _Ended(f"{outcome.end.name} after {outcome.moved_bytes} of {size_bytes} bytes")
        return message

    def _send(self, message: bytes) -> None:
        outcome = stream_send(
            self._connection.fileno(), message, _NOWHERE, _NO_PIECES, _NO_PIECES, limit_s=self._bounds.message_seconds
        )
        if outcome.end is not StreamEnd.COMPLETE:
            raise _Ended(f"{outcome.end.name} in an answer")


def _status_of(error: KvferryError) -> Status:
    if isinstance(error, CallerError):
        return Status.INVALID
    return Status.BUSY if isinstance(error, ResourceExhausted) else Status.FAILED
