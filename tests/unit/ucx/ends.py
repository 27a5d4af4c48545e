"""Two ends of direct UCX in one process."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import Window
from kvferry.device.ucx import Limits, MemoryKind, RemoteMemory, UcxEnd, find_ucx

SIZE = 1 << 20
WAIT_S = 20.0


def plan(*runs: tuple[int, int, int]) -> CopyPlan:
    """Runs of source offset, destination offset and length."""
    columns = np.array(runs, dtype=np.int64).reshape(-1, 3).T
    return CopyPlan(*columns)


@dataclass
class Ends:
    """A source of random bytes, and a reader that knows it as ``peer`` with one region."""

    limits: Limits = field(default_factory=Limits)
    sees_failures: bool = True
    size: int = SIZE

    def __post_init__(self) -> None:
        self.there: npt.NDArray[np.uint8] = np.random.default_rng(1).integers(0, 256, self.size, dtype=np.uint8)
        self.here = np.zeros(self.size, dtype=np.uint8)
        # UCX reads it when it is loaded. What it would say of gets that were given up is what the tests are about.
        os.environ.setdefault("UCX_LOG_LEVEL", "fatal")
        library = find_ucx()
        self.source, self.reader = UcxEnd(library), UcxEnd(library, self.limits)
        exposed = self.source.add_region(window(self.there), MemoryKind.HOST)
        self.local = self.reader.add_region(window(self.here), MemoryKind.HOST)
        self.described = RemoteMemory(window(self.there).address, self.size, self.source.region_key(exposed))
        self.peer = self.reader.connect(self.source.address(), [self.described], sees_failures=self.sees_failures)

    def read(self, wanted: CopyPlan) -> int:
        """Start reading."""
        return self.reader.read(self.peer, 0, self.local, wanted)

    def until(self, condition: Callable[[], bool]) -> None:
        """Let both make progress until a condition holds."""
        until = time.monotonic() + WAIT_S
        while not condition():
            self.source.progress()
            assert time.monotonic() < until, "it did not come to an end"

    def close(self) -> None:
        """Close both, the reader first."""
        self.reader.close()
        self.source.close()


def window(memory: npt.NDArray[np.uint8]) -> Window:
    """Where an array lies."""
    return Window(memory.ctypes.data, memory.nbytes)
