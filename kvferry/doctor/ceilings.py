"""What this machine gives at most, in GB/s: one plain copy of memory, and one plain socket on the loopback."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import Window
from kvferry.device.memfd import create_shared_memory
from kvferry.device.native import ceiling_copy

_BYTES = 32 << 20
_PIECE_BYTES = 1 << 20
_ROUNDS = 3
_SOCKET_BYTES = 4 << 20
_SOCKET_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates that no path can exceed by much."""

    memory_gbytes_per_s: float
    """Of a copy by one thread, in pieces of 1 MiB."""
    socket_gbytes_per_s: float


def measure() -> Ceilings:
    """Takes some tens of milliseconds of an idle core."""
    return Ceilings(_rate(_copy_memory), _rate(_send_and_receive))


def _rate(once: Callable[[], float]) -> float:
    return _BYTES / min(once() for _ in range(_ROUNDS)) / 1e9


def _copy_memory() -> float:
    """Seconds that a copy takes, into memory that was touched before."""
    memories = [create_shared_memory("kvferry-doctor", _BYTES, field="ceiling_bytes") for _ in range(2)]
    try:
        windows = [Window(memory.address, memory.size_bytes) for memory in memories]
        firsts = np.arange(0, _BYTES, _PIECE_BYTES, dtype=np.int64)
        plan = CopyPlan(firsts, firsts, np.full(firsts.size, _PIECE_BYTES, dtype=np.int64))
        # The first touches every page.
        return min(ceiling_copy(windows[0], windows[1], plan, 1) for _ in range(_ROUNDS))
    finally:
        for memory in memories:
            memory.close()


def _send_and_receive() -> float:
    """Seconds that bytes take over a TCP connection of this machine with itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_SOCKET_S_MAX)
        with socket.create_connection(listener.getsockname(), timeout=_SOCKET_S_MAX) as sender:
            receiver, _ = listener.accept()
            with receiver:
                receiver.settimeout(_SOCKET_S_MAX)
                sending = threading.Thread(target=sender.sendall, args=(bytes(_BYTES),), daemon=True)
                started = time.perf_counter()
                sending.start()
                _receive(receiver)
                seconds = time.perf_counter() - started
                sending.join()
    return seconds


def _receive(receiver: socket.socket) -> None:
    piece = bytearray(_SOCKET_BYTES)
    left = _BYTES
    while left:
        count = receiver.recv_into(piece, min(left, len(piece)))
        if not count:
            raise ConnectionError(f"the loopback connection ended with {left} bytes left")
        left -= count
