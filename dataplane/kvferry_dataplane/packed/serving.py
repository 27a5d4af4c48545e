"""One reader's connection, as the source sees it."""

import contextlib
import socket
import time

import numpy as np
import numpy.typing as npt
import structlog

from kvferry.core.errors import CallerError, KvferryError, ResourceExhausted
from kvferry.device.copying import Window
from kvferry.device.native import stream_receive, stream_send
from kvferry.device.streams import StreamEnd
from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.bounds import ServerBounds
from kvferry_dataplane.packed.source import ChunkSource
from kvferry_dataplane.packed.wire import RequestHeader, Status

_NOWHERE = Window(0, 0)
_NO_PIECES = np.empty(0, dtype=np.int64)
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
        bounds: ServerBounds,
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._boot_id = boot_id
        self._words = words
        self._source = source
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
                    self._answer(self._next_header())
            except _Ended as ended:
                _log.info("pack connection ended", reader=self._reader, why=str(ended))

    def _greet(self) -> None:
        message = self._receive(wire.HELLO_BYTES, self._stranger_left())
        if message[: len(wire.MAGIC)] != wire.MAGIC:
            raise _Ended("it does not speak this protocol")
        same_life = message[len(wire.MAGIC) :] == self._boot_id
        self._send(wire.welcome(Status.OK if same_life else Status.OTHER_LIFE))
        if not same_life:
            raise _Ended("it looks for another life of this data plane")

    def _next_header(self) -> RequestHeader:
        # Who has shown a lease once may take its time; a peer whose host has died is found by TCP's keep-alive.
        message = self._receive(wire.REQUEST_HEADER_BYTES, self._stranger_left() if self.is_stranger else -1.0)
        try:
            return wire.parse_request_header(message)
        except CallerError as error:
            raise _Ended(error.message) from error

    def _answer(self, header: RequestHeader) -> None:
        body = self._receive(header.body_bytes, self._bounds.message_seconds)
        if not self._holds(header):
            self._refuse(header, Status.FENCED)
            return
        self.is_stranger = False
        try:
            offsets, lengths = wire.parse_pieces(header, body)
            head = wire.answer(header.number, Status.OK, header.total_bytes)
            sent = self._source.send(self._connection.fileno(), head, offsets, lengths, self._bounds.send_seconds)
        except KvferryError as error:
            _log.warning("pack request refused", reader=self._reader, reason=error.reason, message=error.message)
            self._refuse(header, _status_of(error))
            return
        self._refusals = 0
        if sent.end is not StreamEnd.COMPLETE:
            raise _Ended(f"{sent.end.name} after {sent.moved_bytes} bytes of an answer")
        self.sent_bytes += header.total_bytes
        # Only now: if the word stands after the last byte was taken, the blocks were pinned all the while.
        self._send(wire.trailer(header.number, Status.OK if self._holds(header) else Status.FENCED))

    def _holds(self, header: RequestHeader) -> bool:
        # Zero is what a free slot holds.
        if not header.word or header.slot >= self._words.size:
            return False
        return int(self._words[header.slot]) == header.word

    def _refuse(self, header: RequestHeader, status: Status) -> None:
        self._refusals += 1
        self._send(wire.answer(header.number, status))
        if self._refusals >= self._bounds.refusals_max:
            raise _Ended(f"{self._refusals} of its requests were refused in a row")

    def _stranger_left(self) -> float:
        return max(self._stranger_until - time.monotonic(), 0.0)

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
