"""One TCP socket that carries the bytes one after the other: what the network gives at most to a single connection."""

import socket
import struct
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch

from kvferry.bench.peers import PeerOptions, Unavailable
from kvferry.bench.workload import Workload
from kvferry.core.errors import NotReady, TransportFailed
from kvferry.device.memfd import create_shared_memory

# Tried on a veth pair: buffers below this halve the rate, larger ones and larger pieces do not help.
_BUFFER_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20
_REQUEST = struct.Struct("<Q")


class StreamPeer:
    """A pool, and a socket over which its first bytes are sent when asked for."""

    def __init__(self, options: PeerOptions) -> None:
        if options.device != "cpu":
            raise Unavailable("compared in host memory only")
        self._memory = create_shared_memory("kvferry-bench", options.pool_bytes)
        self._bytes = memoryview(self._memory.mapping)
        self.pool = torch.frombuffer(self._memory.mapping, dtype=torch.uint8)
        self._listener = socket.create_server((options.host, 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self.needs_progress = False
        self._socket: socket.socket | None = None
        threading.Thread(target=self._serve, name="stream", daemon=True).start()

    def describe(self) -> dict[str, Any]:
        """Where it listens."""
        host, port = self._listener.getsockname()
        return {"host": host, "port": port}

    def connect(self, described: Mapping[str, Any]) -> None:
        """Connect to the other side."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        connection.connect((described["host"], described["port"]))
        self._socket = connection

    def progress(self) -> None:
        """Nothing: a thread sends."""

    def read(self, workload: Workload) -> float:
        """Receive the first ``total_bytes`` of the other side's pool; seconds.

        Raises:
            NotReady: it is not connected.
            TransportFailed: the other side went away.
        """
        if self._socket is None:
            raise NotReady("read before connect")
        total, received = workload.total_bytes, 0
        started = time.perf_counter()
        self._socket.sendall(_REQUEST.pack(total))
        while received < total:
            count = self._socket.recv_into(self._bytes[received : min(received + _PIECE_BYTES, total)])
            if count == 0:
                raise TransportFailed(f"the stream ended after {received} bytes")
            received += count
        return time.perf_counter() - started

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while request := connection.recv(_REQUEST.size, socket.MSG_WAITALL):
                (total,) = _REQUEST.unpack(request)
                for start in range(0, total, _PIECE_BYTES):
                    connection.sendall(self._bytes[start : min(start + _PIECE_BYTES, total)])
