"""What the two ways cost before any read has taken them: measured where that can be done alone, else assumed."""

import mmap
import socket
import threading
import time

import numpy as np

from kvferry.device.copying import Window
from kvferry.device.native import stream_receive, stream_send
from kvferry_dataplane.config import has_rdma_devices
from kvferry_dataplane.packed.costs import WayCost

_SMALL_BYTES = 4096
_TOTAL_BYTES = 8 << 20
_ROUNDS = 3
_LIMIT_SECONDS = 1.0
_REQUEST_SECONDS = 200e-6
"""A round trip and two threads that wake."""
NIXL_OVER_SOCKETS = WayCost(request_seconds=150e-6, piece_seconds=12e-6, byte_seconds=1 / 2.5e9)
"""UCX over TCP, which emulates reads by messages."""
NIXL_OVER_RDMA = WayCost(request_seconds=20e-6, piece_seconds=0.5e-6, byte_seconds=1 / 20e9)


def assumed_nixl_cost() -> WayCost:
    """What NIXL costs to another host, by whether this one has RDMA devices."""
    return NIXL_OVER_RDMA if has_rdma_devices() else NIXL_OVER_SOCKETS


def measured_packed_cost() -> WayCost:
    """What the packed path costs through the loopback device, where the wire costs least. Takes some 20 ms."""
    memory = np.frombuffer(mmap.mmap(-1, 2 * _TOTAL_BYTES), dtype=np.uint8)
    windows = [Window(memory.ctypes.data + side * _TOTAL_BYTES, _TOTAL_BYTES) for side in range(2)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiving = socket.create_connection(listener.getsockname())
        sending, _ = listener.accept()
    with sending, receiving:
        # The first round brings the memory in.
        best = [
            min(_seconds(sending, receiving, windows, run_bytes) for _ in range(_ROUNDS))
            for run_bytes in (_TOTAL_BYTES, _SMALL_BYTES)
        ]
    byte_seconds = best[0] / _TOTAL_BYTES
    piece_seconds = max(best[1] - best[0], 0.0) / (_TOTAL_BYTES // _SMALL_BYTES)
    return WayCost(_REQUEST_SECONDS, piece_seconds, byte_seconds)


def _seconds(sending: socket.socket, receiving: socket.socket, windows: list[Window], run_bytes: int) -> float:
    count = _TOTAL_BYTES // run_bytes
    offsets = np.random.default_rng(0).permutation(count).astype(np.int64) * run_bytes
    lengths = np.full(count, run_bytes, dtype=np.int64)
    source, destination = windows
    sender = threading.Thread(
        target=stream_send,
        args=(sending.fileno(), b"", source, offsets, lengths),
        kwargs={"limit_s": _LIMIT_SECONDS},
        daemon=True,
    )
    started = time.perf_counter()
    sender.start()
    stream_receive(receiving.fileno(), destination, offsets[::-1], lengths, suffix_bytes=0, limit_s=_LIMIT_SECONDS)
    seconds = time.perf_counter() - started
    sender.join()
    return seconds
