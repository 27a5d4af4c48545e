"""What goes over a pack connection. Little endian; pure.

The reader says hello once and then sends requests; the source answers them in order. An answer is a header, the bytes
of the pieces one after the other, and a trailer: the source has looked at the lease word again after the last byte had
left its pool. A refusal is a header alone.

Or the request asks that the pieces be held: packed into a staging slot, which the reader then reads by NIXL. The answer
says where, after the source has looked at the lease word again. The slot stays as it is until the reader says that it
has read it, or the connection ends. The source says back that it still was: the proof that what was read was right. A
NIXL read that comes too late may read something else; nobody says so to it.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from kvferry.core.errors import InvalidArgument, MessageTooLarge
from kvferry.core.planning.copies import Offsets

MAGIC = b"KVFPACK\x01"
BOOT_ID_BYTES = 16
PIECES_MAX = 1 << 16
"""Of one request."""
REQUEST_BYTES_MAX = 64 << 20
"""Bytes of the pieces of one request."""

HELLO_BYTES = len(MAGIC) + BOOT_ID_BYTES
_WELCOME = struct.Struct("<II")
_REQUEST = struct.Struct("<QQQIIII")
_HELD = struct.Struct("<QQQII")
_ANSWER = struct.Struct("<QQI4x")
_TRAILER = struct.Struct("<QI4x")
WELCOME_BYTES = _WELCOME.size
REQUEST_HEADER_BYTES = _REQUEST.size
ANSWER_BYTES = _ANSWER.size
HELD_BYTES = _HELD.size
TRAILER_BYTES = _TRAILER.size
_OFFSET_BYTES = 8


class Status(IntEnum):
    """What the source says of a connection or a request."""

    OK = 0
    FENCED = 1
    """The lease word is not, or no longer, the one that the request names."""
    INVALID = 2
    """The request contradicts itself or leaves the pool."""
    BUSY = 3
    """A bound of the source is reached."""
    OTHER_LIFE = 4
    """The source is not the life of the data plane that the reader means."""
    FAILED = 5
    """The source could not pack."""


class Kind(IntEnum):
    """What a message of the reader asks for."""

    SEND = 0
    """The bytes."""
    HOLD = 1
    """The bytes in a staging slot."""
    RELEASE = 2
    """The slot of the request of the same number is read."""


@dataclass(frozen=True, slots=True)
class Held:
    """The answer to a request to hold, and to a release, which has no address."""

    number: int
    address: int
    total_bytes: int
    status: Status
    kind: Kind


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """What a request asks for. ``run_bytes`` is the length of every piece, or 0 where lengths are listed."""

    number: int
    word: int = field(repr=False)
    total_bytes: int
    slot: int
    piece_count: int
    run_bytes: int
    kind: Kind = Kind.SEND

    @property
    def body_bytes(self) -> int:
        """What follows the header."""
        return self.piece_count * _OFFSET_BYTES * (1 if self.run_bytes else 2)


def hello(boot_id: bytes) -> bytes:
    """The first message of a reader, to one life of a data plane."""
    return MAGIC + boot_id


def welcome(status: Status) -> bytes:
    """The answer to a hello."""
    return _WELCOME.pack(int.from_bytes(MAGIC[:4], "little"), status)


def parse_welcome(message: bytes) -> Status:
    """The status of an answer to a hello.

    Raises:
        InvalidArgument: it is none.
    """
    magic, status = _WELCOME.unpack(message)
    if magic != int.from_bytes(MAGIC[:4], "little"):
        raise InvalidArgument.of_field("magic", hex(magic), "no pack endpoint")
    return _status(status)


def encode_request(
    number: int, slot: int, word: int, offsets: Offsets, lengths: Offsets, kind: Kind = Kind.SEND
) -> bytes:
    """A request for pieces of the source's pool.

    Raises:
        MessageTooLarge: more pieces or bytes than a request may ask for.
    """
    total, count = int(lengths.sum()), int(lengths.size)
    _check_size(count, total)
    first = int(lengths[0]) if count else 0
    run_bytes = first if first < 1 << 32 and bool((lengths == first).all()) else 0
    header = _REQUEST.pack(number, word, total, slot, count, run_bytes, kind)
    body = offsets.astype("<i8").tobytes()
    return header + body + (b"" if run_bytes else lengths.astype("<i8").tobytes())


def encode_release(number: int) -> bytes:
    """The message that a slot is read."""
    return _REQUEST.pack(number, 0, 0, 0, 0, 0, Kind.RELEASE)


def parse_request_header(message: bytes) -> RequestHeader:
    """A request's header.

    Raises:
        InvalidArgument: an unknown kind.
        MessageTooLarge: it asks for more than a request may.
    """
    number, word, total_bytes, slot, piece_count, run_bytes, kind = _REQUEST.unpack(message)
    _check_size(piece_count, total_bytes)
    return RequestHeader(number, word, total_bytes, slot, piece_count, run_bytes, _kind(kind))


def parse_pieces(header: RequestHeader, body: bytes) -> tuple[Offsets, Offsets]:
    """Offsets and lengths of the pieces that a request asks for.

    Raises:
        InvalidArgument: they do not come to the bytes that the header names.
    """
    listed = np.frombuffer(body, dtype="<i8").astype(np.int64, copy=False)
    offsets = listed[: header.piece_count]
    lengths = listed[header.piece_count :]
    if header.run_bytes:
        lengths = np.full(header.piece_count, header.run_bytes, dtype=np.int64)
    if lengths.size and (int(lengths.min()) < 0 or int(lengths.max()) > REQUEST_BYTES_MAX):
        raise InvalidArgument.of_field("lengths", int(lengths.max()), f"must be 0 to {REQUEST_BYTES_MAX}")
    if int(lengths.sum()) != header.total_bytes:
        raise InvalidArgument.of_field("total_bytes", header.total_bytes, f"the pieces have {int(lengths.sum())}")
    return offsets, lengths


def answer(number: int, status: Status, total_bytes: int = 0) -> bytes:
    """The header of an answer, or a refusal."""
    return _ANSWER.pack(number, total_bytes, status)


def parse_answer(message: bytes) -> tuple[int, Status, int]:
    """Number of the request, status and bytes that follow.

    Raises:
        InvalidArgument: an unknown status.
    """
    number, total_bytes, status = _ANSWER.unpack(message)
    return number, _status(status), total_bytes


def encode_held(held: Held) -> bytes:
    """The answer about a slot."""
    return _HELD.pack(held.number, held.address, held.total_bytes, held.status, held.kind)


def parse_held(message: bytes) -> Held:
    """The answer about a slot.

    Raises:
        InvalidArgument: an unknown status or kind.
    """
    number, address, total_bytes, status, kind = _HELD.unpack(message)
    return Held(number, address, total_bytes, _status(status), _kind(kind))


def trailer(number: int, status: Status) -> bytes:
    """What follows the bytes."""
    return _TRAILER.pack(number, status)


def parse_trailer(message: bytes) -> tuple[int, Status]:
    """Number of the request and status after its last byte.

    Raises:
        InvalidArgument: an unknown status.
    """
    number, status = _TRAILER.unpack(message)
    return number, _status(status)


def _status(value: int) -> Status:
    try:
        return Status(value)
    except ValueError:
        raise InvalidArgument.of_field("status", value, "unknown") from None


def _kind(value: int) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise InvalidArgument.of_field("kind", value, "unknown") from None


def _check_size(piece_count: int, total_bytes: int) -> None:
    if piece_count > PIECES_MAX:
        raise MessageTooLarge.of_field("piece_count", piece_count, f"at most {PIECES_MAX} in a request")
    if total_bytes > REQUEST_BYTES_MAX:
        raise MessageTooLarge.of_field("total_bytes", total_bytes, f"at most {REQUEST_BYTES_MAX} in a request")
