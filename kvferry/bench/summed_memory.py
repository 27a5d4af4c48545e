"""Memory of this process that is copied and summed, to compare the two."""

import time
from typing import Protocol

import numpy as np
import torch

from kvferry.bench.ceilings import DeviceMemory
from kvferry.core.checksums.regions import DigestRegion
from kvferry.core.checksums.sums import BlocksToSum
from kvferry.core.layouts import WorkerLayout, block_bytes
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import Window
from kvferry.device.cuda import open_device
from kvferry.device.cuda_digest import CudaDigester
from kvferry.device.memfd import create_shared_memory
from kvferry.device.native import ceiling_copy, digest_host

SEED = 7


class SummedMemory(Protocol):
    """A pool that can be copied or summed whole."""

    def copy(self) -> float:
        """Copy all of it; seconds."""
        ...

    def digest(self) -> float:
        """Sum every block of it, in random order; seconds."""
        ...


class SummedHost:
    """Two pools of host memory."""

    def __init__(self, layout: WorkerLayout, pool_bytes: int, threads: int) -> None:
        self._memories = [create_shared_memory("kvferry-bench", pool_bytes) for _ in range(2)]
        for memory in self._memories:
            np.frombuffer(memory.mapping, dtype=np.uint8)[:] = SEED
        self._windows = [Window(memory.address, memory.size_bytes) for memory in self._memories]
        self._region = _region(layout)
        self._threads = threads
        size = block_bytes(layout.groups[0], layout.ranks[0].placements[0])
        starts = np.random.default_rng(SEED).permutation(pool_bytes // size).astype(np.int64) * size
        self._plan = CopyPlan(starts, starts[::-1].copy(), np.full(starts.size, size, dtype=np.int64))

    def copy(self) -> float:
        """Copy the pool's blocks, past the caches."""
        return ceiling_copy(self._windows[0], self._windows[1], self._plan, self._threads)

    def digest(self) -> float:
        """Sum the pool's blocks, by as many threads."""
        started = time.perf_counter()
        digest_host(self._windows[0], self._region, self._threads)
        return time.perf_counter() - started


class SummedDevice:
    """Two pools on a GPU."""

    def __init__(self, layout: WorkerLayout, pool_bytes: int, device: str) -> None:
        self._memory = DeviceMemory((device, device), pool_bytes, SEED)
        self._digester = CudaDigester(open_device(torch.device(device).index or 0))
        self._window = Window(self._memory.source.data_ptr(), pool_bytes)
        self._region = _region(layout)

    def copy(self) -> float:
        """Copy the pool in one run, timed on the GPU."""
        return self._memory.copy(self._window.size_bytes, busy=False)

    def digest(self) -> float:
        """Sum the pool, with all that the host does for it."""
        started = time.perf_counter()
        self._digester.digest(self._window, self._region)
        return time.perf_counter() - started


def _region(layout: WorkerLayout) -> DigestRegion:
    group, placement = layout.groups[0], layout.ranks[0].placements[0]
    listed = np.random.default_rng(SEED).permutation(placement.block_count).astype(np.int64)
    return BlocksToSum.of(group, placement, listed, 0, every=1, seed=0).region()
