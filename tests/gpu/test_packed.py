"""The packed path between data planes whose pools lie on a device: packed and scattered by its copier."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from kvferry.core.dense import HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.device.cuda import CudaDevice
from kvferry.error.v1 import error_pb2
from kvferry.transfer.v1 import transfer_pb2
from tests.gpu.memory import Bytes
from tests.process.dataplane.harness import POOL_BYTES, DataPlane, large_layout
from tests.process.dataplane.test_packed import begin_a_stuck_read, read
from tests.process.dataplane.test_stuck_sources import OTHER_HALF

FLAGS = ("--path", "packed", "--same-host", "backend")
LATE_SECONDS = 1.0
DEVICES = [("cuda:0", "cuda:0"), ("cpu", "cuda:0"), ("cuda:0", "cpu")]


class Plane(DataPlane):
    """A data plane with its pool on a device or in host memory."""

    def __init__(self, device: CudaDevice, folder: Path, name: str, where: str, *flags: str) -> None:
        super().__init__(folder, name, {}, "--device", where, *FLAGS, *flags)
        self._device = device
        self._address = 0 if where == "cpu" else device.open_handle(self.pool_offer()[0].cuda_ipc_handle)

    def put(self, data: Bytes) -> None:
        """Fill the pool."""
        if self._address:
            self._device.write(self._address, data.tobytes())
        else:
            self.pool()[:] = data

    def get(self) -> Bytes:
        """A copy of the pool."""
        if self._address:
            return np.frombuffer(self._device.read(self._address, POOL_BYTES), dtype=np.uint8)
        return self.pool().copy()

    async def close(self) -> None:
        """End the process."""
        if self._address:
            self._device.close_handle(self._address)
        await super().close()


Start = Callable[..., Awaitable[Plane]]


@pytest.fixture
async def start(device: CudaDevice, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts data planes with random bytes in their pools."""
    started: list[Plane] = []

    async def start_one(name: str, where: str, layout: WorkerLayout, *flags: str) -> Plane:
        plane = Plane(device, tmp_path, name, where, *flags)
        started.append(plane)
        await plane.connect(layout)
        plane.put(np.random.default_rng(len(started)).integers(0, 256, POOL_BYTES, dtype=np.uint8))
        return plane

    yield start_one
    for plane in started:
        await plane.close()


async def start_pair(
    start: Start, wire: str, devices: tuple[str, str], layouts: tuple[WorkerLayout, WorkerLayout]
) -> tuple[Plane, Plane]:
    """A source that packs and a destination."""
    wire_flags = ("--pack-wire", wire)
    source = await start("source", devices[0], layouts[0], *wire_flags, "--pack-listen", "127.0.0.1:0")
    return source, await start("destination", devices[1], layouts[1], *wire_flags)


@pytest.mark.parametrize("wire", ["stream", "nixl"])
@pytest.mark.parametrize("devices", DEVICES, ids="-".join)
@pytest.mark.parametrize("source_order", [HND, NHD])
async def test_every_byte_arrives(start: Start, source_order: str, devices: tuple[str, str], wire: str) -> None:
    """Blocks of any layout come out exactly, over either wire, and nothing beside them is touched."""
    model = DenseModel("model", 2, 8, 128, 16, ElementType.BFLOAT16)
    layouts = dense_layout(model, 256, order=source_order), dense_layout(model, 256, order=HND)
    source, destination = await start_pair(start, wire, devices, layouts)
    rng = np.random.default_rng(3)
    from_ids, to_ids = rng.permutation(256)[:200].tolist(), rng.permutation(256)[:200].tolist()
    untouched = sorted(set(range(256)) - set(to_ids))
    before = destination.get()
    here = await destination.session()
    figures = await read(source, here, from_ids, to_ids)
    backend = "stream" if wire == "stream" else "UCX"
    assert (transfer_pb2.PATH_PACKED, backend) == (figures.path, figures.backend)
    after = destination.get()
    assert source.block_bytes(from_ids, source.get()) == destination.block_bytes(to_ids, after)
    assert destination.block_bytes(untouched, before) == destination.block_bytes(untouched, after)


@pytest.mark.parametrize("wire", ["stream", "nixl"])
async def test_many_reads_leave_no_slot_behind(start: Start, wire: str) -> None:
    """Reads of more bytes than all slots have, again and again, all arrive."""
    source, destination = await start_pair(start, wire, ("cuda:0", "cuda:0"), (large_layout(), large_layout()))
    here = await destination.session()
    ids = list(range(56))
    for _ in range(10):
        await read(source, here, ids, ids[::-1])
    assert source.block_bytes(ids, source.get()) == destination.block_bytes(ids[::-1], destination.get())


@pytest.mark.parametrize("wire", ["stream", "nixl"])
async def test_a_stopped_source_ends_at_the_deadline_without_a_late_byte(start: Start, wire: str) -> None:
    """A read from a stopped source ends at its deadline, no byte comes after, and reads go on once the source does."""
    source, destination = await start_pair(start, wire, ("cuda:0", "cuda:0"), (large_layout(), large_layout()))
    here = await destination.session()
    started = time.monotonic()
    await begin_a_stuck_read(source, here, 1.0)
    finished = await here.finished("stuck")
    assert error_pb2.REASON_DEADLINE_EXCEEDED == finished.failure.reason
    assert time.monotonic() - started < 5.0
    poison = np.full(POOL_BYTES, 7, dtype=np.uint8)
    destination.put(poison)
    source.signal(signal.SIGCONT)
    await asyncio.sleep(LATE_SECONDS)
    assert np.array_equal(poison, destination.get())
    await read(source, here, OTHER_HALF, OTHER_HALF)
    assert source.block_bytes(OTHER_HALF, source.get()) == destination.block_bytes(OTHER_HALF, destination.get())
