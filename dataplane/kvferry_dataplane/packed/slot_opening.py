"""Opens a connection to a source on a thread of its own: names are looked up, and a stopped source does not answer."""

import socket
import threading

from kvferry.core.errors import KvferryError, PeerError
from kvferry.core.reasons import Reason
from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.connection import PackPeer, keep_alive
from kvferry_dataplane.packed.wire import Status


class SlotOpening:
    """A connection that is being opened and greeted, for a bounded time."""

    def __init__(self, peer: PackPeer, seconds: float) -> None:
        self._peer = peer
        self._seconds = seconds
        self._lock = threading.Lock()
        self._opened: socket.socket | None = None
        self._failure: KvferryError | None = None
        self._given_up = False
        threading.Thread(target=self._run, name="kvferry-slot-open", daemon=True).start()

    def take(self) -> socket.socket | None:
        """The connection, which does not block; None while it is being opened.

        Raises:
            PeerError: it cannot be opened.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            return self._opened

    def give_up(self) -> None:
        """Nobody wants it any more."""
        with self._lock:
            self._given_up = True
            if self._opened is not None:
                self._opened.close()

    def _run(self) -> None:
        try:
            connection = self._open()
        except OSError as error:
            self._fail(PeerError(f"{self._peer.endpoint}: {error}"))
        except KvferryError as error:
            self._fail(error)
        else:
            with self._lock:
                self._opened = connection
                if self._given_up:
                    connection.close()

    def _fail(self, error: KvferryError) -> None:
        with self._lock:
            self._failure = error

    def _open(self) -> socket.socket:
        host, _, port = self._peer.endpoint.rpartition(":")
        address = (host.removeprefix("[").removesuffix("]"), int(port))
        connection = socket.create_connection(address, self._seconds)
        try:
            keep_alive(connection)
            self._greet(connection)
        except BaseException:
            connection.close()
            raise
        connection.setblocking(False)
        return connection

    def _greet(self, connection: socket.socket) -> None:
        connection.sendall(wire.hello(self._peer.boot_id))
        message = bytearray()
        while len(message) < wire.WELCOME_BYTES:
            received = connection.recv(wire.WELCOME_BYTES - len(message))
            if not received:
                raise PeerError(f"{self._peer.endpoint}: closed the connection", reason=Reason.PEER_LOST)
            message += received
        status = wire.parse_welcome(bytes(message))
        if status is not Status.OK:
            raise PeerError(f"{self._peer.endpoint}: {status.name}", reason=Reason.PEER_LOST)
