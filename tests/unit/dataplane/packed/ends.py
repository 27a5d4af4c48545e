"""Both ends of the packed path in one process, over loopback, and a source that a test plays itself."""

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import Window
from kvferry_dataplane.config import Listen
from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.bounds import ReaderBounds, ServerBounds
from kvferry_dataplane.packed.connection import PackPeer
from kvferry_dataplane.packed.job import LeaseClaim, PackJob
from kvferry_dataplane.packed.reader import PackReader
from kvferry_dataplane.packed.server import PackServer
from kvferry_dataplane.packed.sink import HostSink
from kvferry_dataplane.packed.source import HostSource

BOOT_ID = b"b" * wire.BOOT_ID_BYTES
SLOT = 3
WORD = 0x0102030405060708
CLAIM = LeaseClaim(SLOT, WORD)
POISON = 0xEE
Bytes = npt.NDArray[np.uint8]


def window(memory: Bytes) -> Window:
    """An array as a window."""
    return Window(memory.ctypes.data, memory.nbytes)


def noise(size_bytes: int) -> Bytes:
    """Random bytes, none of them the poison."""
    drawn = np.random.default_rng(7).integers(0, POISON, size_bytes, dtype=np.uint8)
    assert drawn.size
    return drawn


def shuffled(piece_count: int, run_bytes: int) -> CopyPlan:
    """Pieces of one length, in random order on both sides, that fill both pools."""
    rng = np.random.default_rng(5)
    offsets = [rng.permutation(piece_count).astype(np.int64) * run_bytes for _ in range(2)]
    return CopyPlan(offsets[0], offsets[1], np.full(piece_count, run_bytes, dtype=np.int64))


def copied(plan: CopyPlan, source: Bytes, destination: Bytes) -> Bytes:
    """What the destination holds after a plan."""
    expected = destination.copy()
    for start, end, length in zip(plan.source_offsets, plan.destination_offsets, plan.lengths, strict=True):
        expected[end : end + length] = source[start : start + length]
    return expected


def wait_until(condition: Callable[[], bool], bound_s: float = 10.0) -> None:
    """Wait until a condition holds that another thread brings about."""
    until = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.001)


@dataclass
class Source:
    """A pool that packs."""

    pool: Bytes
    words: npt.NDArray[np.uint64]
    server: PackServer

    @classmethod
    def start(cls, size_bytes: int, bounds: ServerBounds | None = None) -> "Source":
        """Serve noise; slot ``SLOT`` holds ``WORD``."""
        pool = noise(size_bytes)
        words = np.zeros(8, dtype=np.uint64)
        words[SLOT] = WORD
        server = PackServer(Listen("127.0.0.1", 0), BOOT_ID, words, HostSource(window(pool)), bounds=bounds)
        server.start()
        return cls(pool, words, server)

    @property
    def peer(self) -> PackPeer:
        """How to reach it."""
        return PackPeer(f"127.0.0.1:{self.server.port}", BOOT_ID)

    def connect(self) -> socket.socket:
        """A bare connection to it."""
        return socket.create_connection(("127.0.0.1", self.server.port), 5.0)


@dataclass
class Reader:
    """A pool that is read into, poisoned before."""

    pool: Bytes
    wake: int
    reader: PackReader

    @classmethod
    def start(cls, size_bytes: int, bounds: ReaderBounds | None = None) -> "Reader":
        """Make one."""
        pool = np.full(size_bytes, POISON, dtype=np.uint8)
        wake = os.eventfd(0, os.EFD_NONBLOCK)
        return cls(pool, wake, PackReader(HostSink(window(pool)), wake, bounds))

    def finish(self, job: PackJob) -> None:
        """Wait for the end of a job, woken by the eventfd alone; raises what the job raises."""
        while not job.done:
            assert select.select([self.wake], [], [], 10.0)[0], "no end was signalled"
            os.eventfd_read(self.wake)

    def close(self) -> None:
        """End it."""
        self.reader.close()
        os.close(self.wake)


class PlayedSource:
    """A source whose answers a test writes byte by byte."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10.0)

    @property
    def peer(self) -> PackPeer:
        """How to reach it."""
        return PackPeer(f"127.0.0.1:{self._listener.getsockname()[1]}", BOOT_ID)

    def accept(self) -> socket.socket:
        """The reader's connection, greeted."""
        connection, _ = self._listener.accept()
        connection.settimeout(10.0)
        assert wire.hello(BOOT_ID) == connection.recv(wire.HELLO_BYTES, socket.MSG_WAITALL)
        connection.sendall(wire.welcome(wire.Status.OK))
        return connection

    def take_request(self, connection: socket.socket) -> wire.RequestHeader:
        """The next request, its pieces dropped."""
        header = wire.parse_request_header(connection.recv(wire.REQUEST_HEADER_BYTES, socket.MSG_WAITALL))
        connection.recv(header.body_bytes, socket.MSG_WAITALL)
        return header

    def close(self) -> None:
        """End it."""
        self._listener.close()
