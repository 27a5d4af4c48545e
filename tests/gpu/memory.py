"""Memory of a device that tests fill, copy and read back."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.device.copying import Copier, Copies, CopyJob, Window
from kvferry.device.cuda import CudaDevice

Bytes = npt.NDArray[np.uint8]
JOB_SECONDS_MAX = 30.0


@dataclass(frozen=True)
class Memory:
    """An allocation."""

    device: CudaDevice
    window: Window

    def put(self, data: Bytes, at: int = 0) -> None:
        """Write from the start, or from ``at``."""
        self.device.write(self.window.address + at, data.tobytes())

    def get(self, size: int, at: int = 0) -> Bytes:
        """Read from the start, or from ``at``."""
        return np.frombuffer(self.device.read(self.window.address + at, size), dtype=np.uint8)


@contextmanager
def memory(device: CudaDevice, size_bytes: int) -> Iterator[Memory]:
    """Allocate for a while."""
    address = device.allocate(size_bytes)
    try:
        yield Memory(device, Window(address, size_bytes))
    finally:
        device.free(address)


def wait(job: CopyJob) -> None:
    """Wait until the job is done."""
    deadline = time.monotonic() + JOB_SECONDS_MAX
    while not job.done:
        assert time.monotonic() < deadline, "the job does not end"


def run(copier: Copier, source: Window, destination: Window, copies: Sequence[Copies]) -> CopyJob:
    """Copy and wait."""
    job = copier.submit(source, destination, copies)
    wait(job)
    assert sum(copy.total_bytes for copy in copies) == job.copied_bytes
    return job
