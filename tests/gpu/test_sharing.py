"""Memory of other processes and of the host: mapped, copied from, and outlived."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from kvferry.core.errors import TransportFailed
from kvferry.core.planning.copies import StridedCopy
from kvferry.device.copying import Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_copy import CudaCopier
from kvferry.device.cuda_memory import register_host, unregister_host
from kvferry.device.memfd import create_shared_memory, map_shared_memory, reopen_read_only
from tests.gpu.memory import memory, run, wait

SIZE = 1 << 29
SEED = 11

OWNER = """
import sys
import numpy as np
from kvferry.device.cuda import open_device

size, seed = int(sys.argv[1]), int(sys.argv[2])
device = open_device(int(sys.argv[3]))
address = device.allocate(size)
device.write(address, np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes())
print(device.export_handle(address).hex(), flush=True)
sys.stdin.read()
"""


@contextmanager
def owner(size: int, device_index: int) -> Iterator[tuple["subprocess.Popen[str]", bytes]]:
    """A process that owns filled device memory, and the handle of it."""
    command = [sys.executable, "-c", OWNER, str(size), str(SEED), str(device_index)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            yield process, bytes.fromhex(process.stdout.readline())
        finally:
            process.kill()


def shuffle(size: int, run_bytes: int) -> StridedCopy:
    """All runs, each to another place."""
    rng = np.random.default_rng(run_bytes)
    source, destination = (rng.permutation(size // run_bytes).astype(np.int64) * run_bytes for _ in range(2))
    return StridedCopy(source, destination, (), run_bytes)


def shuffled(copy: StridedCopy, data: "np.typing.NDArray[np.uint8]") -> "np.typing.NDArray[np.uint8]":
    """What ``copy`` makes of ``data``."""
    expected = np.empty_like(data).reshape(-1, copy.run_bytes)
    expected[copy.destination_bases // copy.run_bytes] = data.reshape(expected.shape)[
        copy.source_bases // copy.run_bytes
    ]
    return expected.ravel()


@pytest.mark.parametrize("run_bytes", [16384, 1000])
def test_another_process_memory(
    device: CudaDevice, source_device: CudaDevice, copier: CudaCopier, run_bytes: int
) -> None:
    """A pool of another process, on the same device or on its peer, is read through its mapping."""
    size = 16_384_000
    with owner(size, source_device.index) as (_, handle), memory(device, size) as here:
        address = device.open_handle(handle)
        copy = shuffle(size, run_bytes)
        run(copier, Window(address, size), here.window, [copy])
        data = np.random.default_rng(SEED).integers(0, 256, size, np.uint8)
        assert np.array_equal(shuffled(copy, data), here.get(size))
        device.close_handle(address)


def test_the_owner_is_killed_midway(device: CudaDevice, source_device: CudaDevice, kernels: object) -> None:
    """If the source's process is killed during a copy, the copy still ends with the right bytes, and so do others."""
    copier = CudaCopier(device, sm_count_max=2, cache_directory=kernels)  # type: ignore[arg-type]
    with owner(SIZE, source_device.index) as (process, handle), memory(device, SIZE) as here:
        address = device.open_handle(handle)
        copy = shuffle(SIZE, 65536)
        jobs = [copier.submit(Window(address, SIZE), here.window, [copy]) for _ in range(8)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        assert not jobs[-1].done, "the copies ended before the process did: nothing was tested"
        for job in jobs:
            wait(job)
        assert [SIZE] * 8 == [job.copied_bytes for job in jobs]
        data = np.random.default_rng(SEED).integers(0, 256, SIZE, np.uint8)
        expected = shuffled(copy, data)
        assert np.array_equal(expected, here.get(SIZE))
        device.fill(here.window.address, 0, SIZE)
        run(copier, Window(address, SIZE), here.window, [copy])
        assert np.array_equal(expected, here.get(SIZE))
        device.close_handle(address)
    copier.close()


@pytest.mark.parametrize("run_bytes", [4096, 1000, 16])
@pytest.mark.parametrize("writable", [True, False])
def test_host_memory(device: CudaDevice, copier: CudaCopier, run_bytes: int, writable: bool) -> None:
    """Host memory, also a mapping that may only be read, is registered and copied from; a writable one is copied to."""
    size = 8_192_000
    shared = create_shared_memory("test", size)
    reader = reopen_read_only(shared.descriptor)
    mapping = shared.mapping if writable else map_shared_memory(reader, size, writable=False)
    view = np.frombuffer(mapping, dtype=np.uint8)
    data = np.random.default_rng(3).integers(0, 256, size, np.uint8)
    np.frombuffer(shared.mapping, dtype=np.uint8)[:] = data
    address = int(view.ctypes.data)
    try:
        there = register_host(device, address, size, read_only=not writable)
    except TransportFailed as error:
        if writable:
            raise
        pytest.skip(f"the driver cannot register memory that may only be read: {error.message}")
    copy = shuffle(size, run_bytes)
    with memory(device, size) as here:
        run(copier, Window(there, size), here.window, [copy])
        assert np.array_equal(shuffled(copy, data), here.get(size))
        if writable:
            here.put(data[::-1].copy())
            run(copier, here.window, Window(there, size), [copy])
            assert np.array_equal(shuffled(copy, data[::-1].copy()), view)
    unregister_host(device, address)
    del view
    os.close(reader)
    if not writable:
        mapping.close()
    shared.close()
