"""The native copy core. Only ``kvferry.device.native`` imports it; what its calls mean is written there."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvferry.core.planning.copies import Offsets

class PlanError(Exception):
    """Arguments: field, value, what is wrong with it."""

class TooManyJobs(Exception): ...
class CopierUnusable(Exception): ...

class Plan:
    def __init__(self) -> None: ...
    def add_runs(self, source_offsets: Offsets, destination_offsets: Offsets, lengths: Offsets) -> None: ...
    def add_region(
        self,
        source_bases: Offsets,
        destination_bases: Offsets,
        axes: Sequence[tuple[int, int, int]],
        run_bytes: int,
    ) -> None: ...

class Job:
    @property
    def done(self) -> bool: ...
    @property
    def copied_bytes(self) -> int: ...
    def cancel(self) -> None: ...
    def wait(self, timeout_s: float) -> bool:
        """Negative: for ever."""

class Copier:
    def __init__(
        self,
        *,
        thread_count: int,
        jobs_max: int,
        wake_descriptor: int,
        instruction_set: str,
        inline_bytes_max: int,
        stream_bytes_min: int,
        chunk_bytes_max: int,
        patience_ms: int,
        turn_bytes: int,
    ) -> None:
        """``wake_descriptor`` -1: none. ``instruction_set`` empty: the best one."""

    @property
    def instruction_set(self) -> str: ...
    def submit(
        self, plan: Plan, source: tuple[int, int], destination: tuple[int, int], priority: int, silent: bool
    ) -> Job:
        """Takes the plan's content; windows are address and size."""

    def close(self) -> None: ...

def instruction_sets() -> list[str]: ...
def ceiling_copy(
    source: tuple[int, int],
    destination: tuple[int, int],
    source_offsets: Offsets,
    destination_offsets: Offsets,
    lengths: Offsets,
    thread_count: int,
) -> float: ...
def plain_copy(
    source: tuple[int, int],
    destination: tuple[int, int],
    source_offsets: Offsets,
    destination_offsets: Offsets,
    lengths: Offsets,
    thread_count: int,
) -> float: ...

class CancelFlag:
    def __init__(self) -> None: ...
    @property
    def raised(self) -> bool: ...
    def raise_(self) -> None: ...

def stream_send(
    socket: int, prefix: bytes, window: tuple[int, int], offsets: Offsets, lengths: Offsets, limit_s: float
) -> tuple[int, int, int]:
    """Returns the end, bytes moved and an errno."""

def stream_receive(
    socket: int,
    window: tuple[int, int],
    offsets: Offsets,
    lengths: Offsets,
    suffix_size: int,
    limit_s: float,
    flag: CancelFlag | None = None,
    wake_descriptor: int = -1,
) -> tuple[tuple[int, int, int], bytes]: ...
def stream_discard(socket: int, size_bytes: int, limit_s: float) -> tuple[int, int, int]: ...
def add_digest(
    window: tuple[int, int],
    bases: Offsets,
    tokens: Offsets,
    counts: Offsets,
    rows: Offsets,
    cell_offsets: Offsets,
    cell_keys: npt.NDArray[np.uint64],
    inner: int,
    shape: tuple[int, int, int, int],
    word_keys: npt.NDArray[np.uint32],
    sums: npt.NDArray[np.uint64],
    thread_count: int,
    flag: CancelFlag | None = None,
    instruction_set: str = "",
) -> bool:
    """Adds to ``sums``, [row, cell]; ``shape``: token stride, dim stride, elements of a run, bytes of an element."""

def digest_instruction_sets() -> list[str]: ...
