"""What the memory gives at most: the same bytes copied in one process, with nothing around it."""

import asyncio
from typing import Any, Protocol

import numpy as np
import torch

from kvferry.bench.memory import fill, first_wrong_block, poison
from kvferry.bench.workload import Workload
from kvferry.core.errors import TransportFailed
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import Window
from kvferry.device.cuda import call, open_device
from kvferry.device.memfd import create_shared_memory
from kvferry.device.native import ceiling_copy

CEILING_COPY = "ceiling_copy"
"""The plainest fast loop over the same pieces, with stores past the caches."""
CEILING_MEMCPY = "ceiling_memcpy"
"""The same with `memcpy`."""
CEILING_DEVICE = "ceiling_device_copy"
"""One device-to-device copy of as many bytes in a row; between two GPUs a peer copy."""
CEILING_DEVICE_BUSY = "ceiling_device_copy_busy"
"""The same right behind another such copy, which is some percent faster than on a device that was idle."""


class Yardstick(Protocol):
    """Something that reads the same workloads and that kvferry is measured against."""

    async def read(self, workload: Workload) -> float:
        """Read a workload; seconds."""
        ...

    async def read_verified(self, workload: Workload, seed: int) -> None:
        """Read it into poisoned memory and compare every byte, where the source holds the noise of ``seed``.

        Raises:
            TransportFailed: a block is wrong.
        """
        ...


class HostMemory:
    """Two pools of host memory in this process."""

    def __init__(self, pool_bytes: int, seed: int) -> None:
        self._memories = [create_shared_memory("kvferry-bench", pool_bytes) for _ in range(2)]
        self._tensors = [torch.frombuffer(memory.mapping, dtype=torch.uint8) for memory in self._memories]
        fill(self._tensors[0], seed)

    @property
    def destination(self) -> torch.Tensor:
        """Where copies go."""
        return self._tensors[1]

    def copy(self, workload: Workload, threads: int, *, non_temporal: bool) -> float:
        """Copy a workload's pieces; seconds."""
        size = workload.block_bytes
        plan = CopyPlan(
            workload.source_blocks() * size,
            workload.destination_blocks() * size,
            np.full(workload.block_count, size, dtype=np.int64),
        )
        source, destination = (Window(memory.address, memory.size_bytes) for memory in self._memories)
        return ceiling_copy(source, destination, plan, threads, non_temporal=non_temporal)


class HostCeiling:
    """Copies of the same pieces by so many threads."""

    def __init__(self, memory: HostMemory, threads: int, *, non_temporal: bool) -> None:
        self._memory = memory
        self._threads = threads
        self._non_temporal = non_temporal

    async def read(self, workload: Workload) -> float:
        """Copy a workload; seconds, without the start of the threads."""
        return await asyncio.to_thread(self._memory.copy, workload, self._threads, non_temporal=self._non_temporal)

    async def read_verified(self, workload: Workload, seed: int) -> None:
        """Copy it into poisoned memory and compare. Raises TransportFailed."""
        poison(self._memory.destination)
        await self.read(workload)
        _require_right(self._memory.destination, workload, seed)


class DeviceMemory:
    """Two pools, on one GPU or on two that reach each other."""

    def __init__(self, devices: tuple[str, str], pool_bytes: int, seed: int) -> None:
        """Allocate the source's and the destination's. Raises TransportFailed if one GPU does not reach the other."""
        self.source, self.destination = (torch.zeros(pool_bytes, dtype=torch.uint8, device=where) for where in devices)
        fill(self.source, seed)
        # Copies in the default streams of two GPUs would wait for each other.
        self._stream = torch.cuda.Stream(self.destination.device)  # type: ignore[no-untyped-call]
        self._contexts: list[Any] = []
        if self.source.device != self.destination.device:
            # torch retains the same contexts.
            there, here = (open_device(pool.device.index) for pool in (self.source, self.destination))
            # Without it the driver takes the bytes through the host's memory.
            here.reach(there)
            self._contexts = [here.context, there.context]

    def copy(self, count: int, *, busy: bool) -> float:
        """Copy ``count`` bytes in one run, ``busy``: behind another such copy; seconds on the destination's GPU."""
        with torch.cuda.device(self.destination.device), torch.cuda.stream(self._stream):
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            if busy:
                self._enqueue(count)
            started.record()
            self._enqueue(count)
            ended.record()
            ended.synchronize()
        return float(started.elapsed_time(ended)) / 1e3

    def _enqueue(self, count: int) -> None:
        if not self._contexts:
            self.destination[:count].copy_(self.source[:count])
            return
        here, there = self._contexts
        pools = self.destination.data_ptr(), here, self.source.data_ptr(), there
        call("cuMemcpyPeerAsync", *pools, count, self._stream.cuda_stream)


class DeviceCeiling:
    """One copy on a GPU, timed on the GPU."""

    def __init__(self, memory: DeviceMemory, *, busy: bool) -> None:
        self._memory = memory
        self._busy = busy

    async def read(self, workload: Workload) -> float:
        """Copy as many bytes as the workload has, in one run; seconds on the GPU."""
        return await asyncio.to_thread(self._memory.copy, workload.total_bytes, busy=self._busy)

    async def read_verified(self, workload: Workload, seed: int) -> None:
        """Copy the whole pool into poisoned memory and compare. Raises TransportFailed."""
        poison(self._memory.destination)
        self._memory.copy(workload.pool_bytes, busy=self._busy)
        if not torch.equal(self._memory.source.to(self._memory.destination.device), self._memory.destination):
            raise TransportFailed("the device's own copy is wrong")


def make_ceilings(devices: tuple[str, str], pool_bytes: int, seed: int, threads: int) -> dict[str, Yardstick]:
    """The ceilings of two pools on ``devices``, both the host or both GPUs, by name. They hold two pools."""
    if devices[0] != "cpu":
        on_device = DeviceMemory(devices, pool_bytes, seed)
        return {
            CEILING_DEVICE: DeviceCeiling(on_device, busy=False),
            CEILING_DEVICE_BUSY: DeviceCeiling(on_device, busy=True),
        }
    memory = HostMemory(pool_bytes, seed)
    return {
        CEILING_COPY: HostCeiling(memory, threads, non_temporal=True),
        CEILING_MEMCPY: HostCeiling(memory, threads, non_temporal=False),
    }


def _require_right(arrived: torch.Tensor, workload: Workload, seed: int) -> None:
    wrong = first_wrong_block(arrived, workload, seed)
    if wrong is not None:
        raise TransportFailed(f"ceiling: destination block {wrong} is wrong")
