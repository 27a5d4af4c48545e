"""Passes one message and a few descriptors over a Unix socket.

The message is preceded by its length as 4 bytes, little endian; the descriptors come as ancillary data with the first
byte.
"""

import array
import os
import socket
import struct
import time
from collections.abc import Sequence

from kvferry.core.errors import TransportFailed

MESSAGE_BYTES_MAX = 4096
_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")
_DESCRIPTOR_BYTES = array.array("i").itemsize
_DESCRIPTORS_MAX = 4


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of whoever is at the other end of a Unix socket.

    Raises:
        OSError: the system does not say.
    """
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def is_trusted(uid: int) -> bool:
    """Whether memory is shared with processes of a user: one's own, and the system's."""
    return uid in (os.getuid(), 0)


def send_offer(connection: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send ``message``, and ``descriptors`` with it. The connection must take it in one go.

    Raises:
        TransportFailed: the peer is gone, or took only a part.
    """
    framed = _LENGTH.pack(len(message)) + message
    ancillary = []
    if descriptors:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
    try:
        sent = connection.sendmsg([framed], ancillary)
    except OSError as error:
        raise TransportFailed(f"sending the pool offer: {error}") from error
    if sent != len(framed):
        raise TransportFailed(f"sending the pool offer: {sent} of {len(framed)} bytes were taken")


def receive_offer(
    connection: socket.socket, *, descriptors_max: int = 1, timeout_s: float = 5.0
) -> tuple[bytes, tuple[int, ...]]:
    """Receive what :func:`send_offer` sent: the message and the descriptors, which the caller must close.

    Sets the connection's timeout; all of it has come within ``timeout_s``.

    Raises:
        TransportFailed: the peer closed, timed out, or sent something else.
    """
    received: list[int] = []
    try:
        message = _receive(connection, received, time.monotonic() + timeout_s)
        _refuse_more_than(descriptors_max, received)
    except BaseException as error:
        for descriptor in received:
            os.close(descriptor)
        if isinstance(error, OSError):
            raise TransportFailed(f"receiving the pool offer: {error}") from error
        raise
    return message, tuple(received)


def _receive(connection: socket.socket, received: list[int], deadline: float) -> bytes:
    data = b""
    expected = _LENGTH.size
    while len(data) < expected:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TransportFailed("the pool offer took too long")
        connection.settimeout(left)
        chunk, ancillary, flags, _ = connection.recvmsg(
            expected - len(data), socket.CMSG_SPACE(_DESCRIPTORS_MAX * _DESCRIPTOR_BYTES), socket.MSG_CMSG_CLOEXEC
        )
        received += _descriptors_in(ancillary)
        if flags & socket.MSG_CTRUNC:
            raise TransportFailed("the pool offer's descriptors were cut off")
        if not chunk:
            raise TransportFailed(f"the pool offer ended after {len(data)} of {expected} bytes")
        data += chunk
        if expected == _LENGTH.size == len(data):
            expected += _checked_length(_LENGTH.unpack(data)[0])
    return data[_LENGTH.size :]


def _refuse_more_than(descriptors_max: int, received: list[int]) -> None:
    if len(received) > descriptors_max:
        raise TransportFailed(
            f"{len(received)} descriptors came with the pool offer, expected at most {descriptors_max}"
        )


def _checked_length(length: int) -> int:
    if not 0 < length <= MESSAGE_BYTES_MAX:
        raise TransportFailed(f"a pool offer of {length} bytes was announced, 1 to {MESSAGE_BYTES_MAX} are allowed")
    return length


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_BYTES])
    return found.tolist()
