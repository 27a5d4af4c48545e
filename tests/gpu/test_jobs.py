"""Jobs end: whole, cancelled or failed; nothing hangs."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kvferry.core.errors import ConfigInvalid, InvalidArgument, ResourceExhausted
from kvferry.core.planning.copies import StridedCopy
from kvferry.device import cuda_copy
from kvferry.device.copying import Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_copy import CudaCopier
from tests.gpu.memory import memory, run, wait

SIZE = 1 << 30


def whole(size: int, run_bytes: int) -> StridedCopy:
    """A copy of everything in runs of one length."""
    bases = np.arange(size // run_bytes, dtype=np.int64) * run_bytes
    return StridedCopy(bases, bases, (), run_bytes)


@pytest.mark.parametrize("run_bytes", [65536, 1024])
def test_cancelled_midway(device: CudaDevice, kernels: Path, run_bytes: int) -> None:
    """A cancelled job ends early, counts what it copied, writes no more, and leaves the copier usable."""
    copier = CudaCopier(device, sm_count_max=1, cache_directory=kernels)
    with memory(device, SIZE) as there, memory(device, SIZE) as here:
        device.fill(there.window.address, 0x77, SIZE)
        device.fill(here.window.address, 0, SIZE)
        job = copier.submit(there.window, here.window, [whole(SIZE, run_bytes)])
        job.cancel()
        wait(job)
        written = sum(int(np.count_nonzero(here.get(1 << 28, at))) for at in range(0, SIZE, 1 << 28))
        assert written == job.copied_bytes < SIZE
        job.cancel()
        run(copier, there.window, here.window, [whole(1 << 24, run_bytes)])
        assert np.all(here.get(1 << 24) == 0x77)
    copier.close()


def test_cancelled_while_waiting(device: CudaDevice, kernels: Path) -> None:
    """A job that was not launched yet copies nothing once it is cancelled; the others do."""
    copier = CudaCopier(device, sm_count_max=2, cache_directory=kernels)
    with memory(device, SIZE) as there, memory(device, SIZE) as here:
        device.fill(there.window.address, 0x77, SIZE)
        jobs = [
            copier.submit(there.window, here.window, [whole(SIZE // 4, 65536)])
            for _ in range(cuda_copy.LAUNCHES_MAX + 3)
        ]
        jobs[-2].cancel()
        assert (True, 0) == (jobs[-2].done, jobs[-2].copied_bytes)
        for job in jobs:
            wait(job)
        assert [SIZE // 4] * (len(jobs) - 2) == [job.copied_bytes for job in jobs if job is not jobs[-2]][1:]
    copier.close()


def test_higher_priorities_go_first(device: CudaDevice, kernels: Path) -> None:
    """Of the jobs that wait for the device, the one of the highest priority ends first."""
    copier = CudaCopier(device, sm_count_max=1, cache_directory=kernels)
    with memory(device, SIZE) as there, memory(device, SIZE) as here:
        ahead = [
            copier.submit(there.window, here.window, [whole(SIZE // 8, 65536)]) for _ in range(cuda_copy.LAUNCHES_MAX)
        ]
        low = [copier.submit(there.window, here.window, [whole(SIZE // 8, 65536)]) for _ in range(4)]
        high = copier.submit(there.window, here.window, [whole(SIZE // 8, 65536)], priority=5)
        wait(high)
        assert all(job.done for job in ahead)
        assert [False, False] == [job.done for job in low[-2:]]
        for job in low:
            wait(job)
    copier.close()


def test_too_many_jobs_are_refused(device: CudaDevice, kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound a job is refused at once; what was accepted ends."""
    monkeypatch.setattr(cuda_copy, "JOBS_MAX", 2)
    copier = CudaCopier(device, sm_count_max=1, cache_directory=kernels)
    with memory(device, SIZE) as there, memory(device, SIZE) as here:
        jobs = [
            copier.submit(there.window, here.window, [whole(SIZE // 4, 65536)])
            for _ in range(cuda_copy.LAUNCHES_MAX + 2)
        ]
        with pytest.raises(ResourceExhausted):
            copier.submit(there.window, here.window, [whole(SIZE // 4, 65536)])
        for job in jobs:
            wait(job)
    copier.close()


def test_closing_cancels(device: CudaDevice, kernels: Path) -> None:
    """Closing ends what is under way and refuses what comes after; closing again does nothing."""
    copier = CudaCopier(device, sm_count_max=1, cache_directory=kernels)
    with memory(device, SIZE) as there, memory(device, SIZE) as here:
        jobs = [copier.submit(there.window, here.window, [whole(SIZE, 65536)]) for _ in range(8)]
        copier.close()
        assert all(job.done for job in jobs)
        assert sum(job.copied_bytes for job in jobs) < 8 * SIZE
        with pytest.raises(InvalidArgument):
            copier.submit(there.window, here.window, [whole(SIZE, 65536)])
        copier.close()


def test_threads_share_a_copier(device: CudaDevice, copier: CudaCopier) -> None:
    """Several threads submit and wait at once; every job copies its own bytes."""
    part, count = 1 << 20, 8
    data = np.random.default_rng(1).integers(0, 256, part * count, np.uint8)
    failures: list[BaseException] = []
    with memory(device, data.size) as there, memory(device, data.size) as here:
        there.put(data)

        def work(number: int) -> None:
            try:
                at = number * part
                windows = Window(there.window.address + at, part), Window(here.window.address + at, part)
                for _ in range(20):
                    run(copier, *windows, [whole(part, 4096)])
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [] == failures
        assert np.array_equal(data, here.get(data.size))


def test_a_bad_bound_is_refused(device: CudaDevice, kernels: Path) -> None:
    """A copier with no multiprocessors is refused."""
    with pytest.raises(ConfigInvalid):
        CudaCopier(device, sm_count_max=0, cache_directory=kernels)


ILLEGAL = """
import sys
from pathlib import Path
import numpy as np
from kvferry.core.errors import TransportFailed
from kvferry.core.planning.copies import StridedCopy
from kvferry.device.copying import Window
from kvferry.device.cuda import open_device
from kvferry.device.cuda_copy import CudaCopier

device = open_device(0)
copier = CudaCopier(device, sm_count_max=None, cache_directory=Path(sys.argv[1]))
run_bytes = int(sys.argv[2])
bases = np.arange(64, dtype=np.int64) * run_bytes
jobs = [copier.submit(Window(1 << 20, 1 << 24), Window(1 << 21, 1 << 24), [StridedCopy(bases, bases, (), run_bytes)])]
failures = []
for _ in range(2):
    try:
        while not jobs[0].done:
            continue
    except TransportFailed as error:
        failures.append(error.metadata["cuda_result"])
try:
    copier.submit(Window(1 << 20, 1 << 24), Window(1 << 21, 1 << 24), [StridedCopy(bases, bases, (), run_bytes)])
except TransportFailed:
    failures.append("refused" if copier.failure is not None else "refused, but well")
copier.close()
print(*failures)
"""


@pytest.mark.parametrize("run_bytes", [4096, 100])
def test_a_broken_mapping_is_an_error(device: CudaDevice, kernels: Path, run_bytes: int) -> None:
    """Memory that is not mapped fails the job, and all after it, with a typed error; nothing hangs."""
    command = [sys.executable, "-c", ILLEGAL, str(kernels), str(run_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)  # noqa: S603
    assert 0 == done.returncode, done.stderr
    first, second, third = done.stdout.split()[-3:]
    assert first == second
    assert "refused" == third
    assert device.memory_bytes()[0] > 0
