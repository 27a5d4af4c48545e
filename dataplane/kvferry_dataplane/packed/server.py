"""The source's end: listens, and sends pieces of the pool to readers that name a live lease."""

import contextlib
import socket
import threading

import numpy as np
import numpy.typing as npt
import structlog

from kvferry.core.errors import AddressInUse, ConfigInvalid
from kvferry_dataplane.config import Listen
from kvferry_dataplane.packed.bounds import ServerBounds
from kvferry_dataplane.packed.congestion import AUTO, congestion_of, set_congestion
from kvferry_dataplane.packed.serving import PackServing
from kvferry_dataplane.packed.source import ChunkSource
from kvferry_dataplane.packed.staging import Staging

_BACKLOG = 64
_ACCEPT_PAUSE_SECONDS = 0.02
_log = structlog.get_logger("kvferry.dataplane.packed")


class PackServer:
    """Serves the packed path on threads of its own, one for each connection, within bounds.

    ``words`` is the lease table: a request is answered only if the slot that it names holds the word that it names. So
    the word is the proof of the right to read as well as of the blocks being pinned.
    """

    def __init__(
        self,
        listen: Listen,
        boot_id: bytes,
        words: npt.NDArray[np.uint64],
        source: ChunkSource,
        *,
        staging: Staging | None = None,
        congestion: str = AUTO,
        bounds: ServerBounds | None = None,
    ) -> None:
        """Bind ``listen``.

        ``staging``: where chunks are held for readers that read them by NIXL; None: they are only sent.
        ``congestion`` names a congestion control, or is ``auto``.

        Raises:
            AddressInUse: it cannot be bound.
            ConfigInvalid: the system has no such congestion control, or does not grant it.
        """
        self._boot_id = boot_id
        self._words = words
        self._source = source
        self._staging = staging
        self._bounds = bounds or ServerBounds()
        self._lock = threading.Lock()
        self._connections: dict[PackServing, threading.Thread] = {}
        self._ended_bytes = 0
        self._closing = threading.Event()
        self._listener = _listener(listen, congestion)
        self._accepting = threading.Thread(target=self._accept, name="kvferry-pack-accept", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    @property
    def congestion(self) -> str:
        """The congestion control that answers are sent with."""
        return congestion_of(self._listener)

    @property
    def connection_count(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    @property
    def sent_bytes(self) -> int:
        """Bytes of pieces sent since the start."""
        return self._ended_bytes + sum(connection.sent_bytes for connection in list(self._connections))

    def start(self) -> None:
        """Start to accept."""
        self._accepting.start()

    def close(self) -> None:
        """Close every connection and wait for the threads: nothing reads the pool after this."""
        with self._lock:
            self._closing.set()
            serving = dict(self._connections)
        # Wakes a thread that is in accept; closing would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in serving:
            connection.end()
        for thread in [*serving.values(), self._accepting]:
            if thread.ident is not None:
                thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                # Out of descriptors, or the reader went away in between: the next one may have more luck.
                _log.warning("accepting a reader failed", message=str(error))
                self._closing.wait(_ACCEPT_PAUSE_SECONDS)
                continue
            self._admit(connection, f"{address[0]}:{address[1]}")

    def _admit(self, connection: socket.socket, reader: str) -> None:
        serving = PackServing(connection, reader, self._boot_id, self._words, self._source, self._staging, self._bounds)
        thread = threading.Thread(target=self._serve, args=(serving,), name="kvferry-pack", daemon=True)
        with self._lock:
            strangers = [other for other in self._connections if other.is_stranger]
            if self._closing.is_set() or len(self._connections) - len(strangers) >= self._bounds.connections_max:
                serving.refuse()
                return
            if len(strangers) >= self._bounds.strangers_max:
                strangers[0].end()
            if len(self._connections) >= self._bounds.connections_max + 2 * self._bounds.strangers_max:
                # Those that were told to end have not all done so yet.
                serving.refuse()
                return
            self._connections[serving] = thread
        thread.start()

    def _serve(self, serving: PackServing) -> None:
        try:
            serving.run()
        finally:
            with self._lock:
                del self._connections[serving]
                self._ended_bytes += serving.sent_bytes


def _listener(listen: Listen, congestion: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        set_congestion(listener, congestion)
        listener.bind((listen.host, listen.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or "cannot listen"
        raise AddressInUse.of_field("pack_listen", f"{listen.host}:{listen.port}", why) from error
    except ConfigInvalid:
        listener.close()
        raise
    return listener
