"""Keeps the TCP connections of a destroyed reader agent open, and throws away what still comes.

Over tcp, UCX emulates a read: the source answers a request with messages. A source that was stopped, and that finds
both unread requests and a closed connection when it goes on, fails to answer; UCX then aborts the whole source process.
So a connection stays open, owned by nobody but this module: its answers end here, in no one's memory. Our side is
closed when the source has answered and then been silent for ``ANSWERED_SECONDS``, or when it has been silent from the
first for ``SILENT_SECONDS``; the source then closes its own.
"""

import contextlib
import os
import selectors
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS_MAX = 256
ANSWERED_SECONDS = 2.0
SILENT_SECONDS = 20.0
"""A source that is stopped for longer has lost its registration."""
_LOOK_SECONDS = 0.5
_CHUNK_BYTES = 1 << 20
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Held:
    """A second descriptor of each TCP connection of this process."""

    connections: tuple[socket.socket, ...]


def hold_connections() -> Held:
    """Take a second descriptor of every TCP connection, before an agent is destroyed."""
    # All sockets first: the listing has a number that is free by now, which the first duplicate takes.
    sockets = [number for number in _descriptors() if _socket_inode(number) is not None]
    return Held(tuple(c for number in sockets if (c := _duplicate_if_tcp(number)) is not None))


class LingeringConnections:
    """The connections kept, at most ``CONNECTIONS_MAX``: past that, the oldest is closed."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._order: deque[socket.socket] = deque()
        self._close_at: dict[socket.socket, float] = {}
        """When our side is closed, of those where it is not."""
        self._lock = threading.Lock()
        self._keeping = threading.Lock()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._order)

    @contextlib.contextmanager
    def kept(self, *, is_reading: bool) -> Iterator[None]:
        """Around the end of an agent; one without reads in flight leaves no source with anything to answer."""
        if not is_reading:
            yield
            return
        # One at a time: each counts the descriptors of all connections.
        with self._keeping:
            held = hold_connections()
            try:
                yield
            finally:
                self.keep(held)

    def keep(self, held: Held) -> int:
        """Keep those whose first descriptor is closed by now, let go of the others; returns how many are kept."""
        uses: dict[int, int] = {}
        for number in _descriptors():
            inode = _socket_inode(number)
            if inode is not None:
                uses[inode] = uses.get(inode, 0) + 1
        kept = 0
        for connection in held.connections:
            if uses.get(os.fstat(connection.fileno()).st_ino, 0) > 1:
                connection.close()
            else:
                self._add(connection)
                kept += 1
        return kept

    def _add(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with self._lock:
            if len(self._order) >= CONNECTIONS_MAX:
                self._drop(self._order[0])
            self._order.append(connection)
            self._close_at[connection] = time.monotonic() + SILENT_SECONDS
            self._selector.register(connection, selectors.EVENT_READ)
            if self._thread is None:
                self._thread = threading.Thread(target=self._drain, name="kvferry-lingering", daemon=True)
                self._thread.start()

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._order.remove(connection)
        self._close_at.pop(connection, None)
        connection.close()

    def _drain(self) -> None:
        scratch = bytearray(_CHUNK_BYTES)
        while True:
            for key, _ in self._selector.select(_LOOK_SECONDS):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                with self._lock:
                    self._take(connection, scratch)
            with self._lock:
                self._close_silent(time.monotonic())

    def _take(self, connection: socket.socket, scratch: bytearray) -> None:
        if connection.fileno() < 0:
            return
        try:
            # MSG_TRUNC: the kernel drops the bytes without copying them.
            open_still = connection.recv_into(scratch, _CHUNK_BYTES, socket.MSG_TRUNC) > 0
        except BlockingIOError:
            return
        except OSError:
            open_still = False
        if not open_still:
            self._drop(connection)
        elif connection in self._close_at:
            self._close_at[connection] = time.monotonic() + ANSWERED_SECONDS

    def _close_silent(self, now: float) -> None:
        """Close our side where the source has nothing more to say; its own end comes then."""
        for connection in [known for known, at in self._close_at.items() if now >= at]:
            del self._close_at[connection]
            # The source may have ended it by now.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)


def _descriptors() -> list[int]:
    return [int(entry.name) for entry in _DESCRIPTORS.iterdir()]


def _socket_inode(number: int) -> int | None:
    try:
        status = os.fstat(number)
    except OSError:
        # Closed since it was listed.
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None


def _duplicate_if_tcp(number: int) -> socket.socket | None:
    try:
        connection = socket.socket(fileno=os.dup(number))
    except OSError:
        return None
    try:
        if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
            connection.getpeername()
            return connection
    except OSError:
        # A listening socket has no peer.
        pass
    connection.close()
    return None
