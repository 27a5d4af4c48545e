"""What this machine gives at most, in GB/s: one plain copy of memory, and one plain socket on the loopback."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import Window
from kvferry.device.memfd import create_shared_memory
from kvferry.device.native import ceiling_copy

_MEMORY_BYTES = 32 << 20
_PIECE_BYTES = 1 << 20
_SOCKET_BYTES = 2 << 20
"""As a probe reads: so much takes longer by the byte than a long stream."""
_ROUNDS = 5
_SOCKET_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates that no path can exceed by much."""

    memory_gbytes_per_s: float
    """Of a copy by one thread, in pieces of 1 MiB."""
    socket_gbytes_per_s: float


def measure() -> Ceilings:
    """Takes some tens of milliseconds of an idle core."""
    return Ceilings(_MEMORY_BYTES / _copy_memory() / 1e9, _SOCKET_BYTES / _ask_and_receive() / 1e9)


def _copy_memory() -> float:
    """Seconds that a copy takes, into memory that was touched before."""
    memories = [create_shared_memory("kvferry-doctor", _MEMORY_BYTES, field="ceiling_bytes") for _ in range(2)]
    try:
        windows = [Window(memory.address, memory.size_bytes) for memory in memories]
        firsts = np.arange(0, _MEMORY_BYTES, _PIECE_BYTES, dtype=np.int64)
        plan = CopyPlan(firsts, firsts, np.full(firsts.size, _PIECE_BYTES, dtype=np.int64))
        # The first touches every page.
        return min(ceiling_copy(windows[0], windows[1], plan, 1) for _ in range(_ROUNDS))
    finally:
        for memory in memories:
            memory.close()


def _ask_and_receive() -> float:
    """Seconds from asking for bytes until they have come over a TCP connection of this machine with itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_SOCKET_S_MAX)
        with socket.create_connection(listener.getsockname(), timeout=_SOCKET_S_MAX) as reader:
            sender, _ = listener.accept()
            sender.settimeout(_SOCKET_S_MAX)
            with sender, ThreadPoolExecutor(1) as threads:
                sending = threads.submit(_send, sender)
                seconds = [_receive(reader) for _ in range(_ROUNDS)]
                sending.result()
    return min(seconds)


def _send(sender: socket.socket) -> None:
    data = bytes(_SOCKET_BYTES)
    for _ in range(_ROUNDS):
        sender.recv(1)
        sender.sendall(data)


def _receive(reader: socket.socket) -> float:
    piece = bytearray(_SOCKET_BYTES)
    left = _SOCKET_BYTES
    started = time.perf_counter()
    reader.sendall(b"?")
    while left:
        count = reader.recv_into(piece, left)
        if not count:
            raise ConnectionError(f"the loopback connection ended with {left} bytes left")
        left -= count
    return time.perf_counter() - started
