"""Passes one message and one descriptor over a Unix socket.

The message is preceded by its length as 4 bytes, little endian; the descriptor comes as ancillary data with the first
byte.
"""

import array
import os
import socket
import struct

from kvferry.core.errors import TransportFailed

MESSAGE_BYTES_MAX = 4096
_LENGTH = struct.Struct("<I")
_DESCRIPTOR_BYTES = array.array("i").itemsize
_DESCRIPTORS_MAX = 4


def send_offer(connection: socket.socket, message: bytes, descriptor: int | None) -> None:
    """Send ``message``, and ``descriptor`` with it unless None. The connection must take it in one go.

    Raises:
        TransportFailed: the peer is gone, or took only a part.
    """
    framed = _LENGTH.pack(len(message)) + message
    ancillary = []
    if descriptor is not None:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor])))
    try:
        sent = connection.sendmsg([framed], ancillary)
    except OSError as error:
        raise TransportFailed(f"sending the pool offer: {error}") from error
    if sent != len(framed):
        raise TransportFailed(f"sending the pool offer: {sent} of {len(framed)} bytes were taken")


def receive_offer(connection: socket.socket) -> tuple[bytes, int | None]:
    """Receive what :func:`send_offer` sent: the message and, if one came, a descriptor that the caller must close.

    Set a timeout on the connection before.

    Raises:
        TransportFailed: the peer closed, timed out, or sent something else.
    """
    received: list[int] = []
    try:
        message = _receive(connection, received)
        _refuse_several(received)
    except BaseException as error:
        for descriptor in received:
            os.close(descriptor)
        if isinstance(error, OSError):
            raise TransportFailed(f"receiving the pool offer: {error}") from error
        raise
    return message, received[0] if received else None


def _receive(connection: socket.socket, received: list[int]) -> bytes:
    data = b""
    expected = _LENGTH.size
    while len(data) < expected:
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


def _refuse_several(received: list[int]) -> None:
    if len(received) > 1:
        raise TransportFailed(f"{len(received)} descriptors came with the pool offer, expected at most one")


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
