"""Memory to copy between, and jobs that last."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from kvferry.core.planning.copies import Axis, CopyPlan, StridedCopy
from kvferry.device.copying import Copies, Window
from kvferry.device.native import HostCopier, HostCopyJob, Tuning

Bytes = npt.NDArray[np.uint8]

WAIT_S = 60.0
"""Longer than anything here takes, also on a busy machine."""

SLOW_BYTES = 1 << 28
_LIBC = ctypes.CDLL(None, use_errno=True)


def window(memory: Bytes) -> Window:
    """All of it."""
    return Window(memory.ctypes.data, memory.nbytes)


def sparse(size: int) -> Bytes:
    """Shared memory that takes up no more than what is written."""
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, size)
    mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED)
    os.close(descriptor)
    return np.frombuffer(mapping, dtype=np.uint8)


def guarded(size: int, *, at_end: bool) -> Bytes:
    """Memory with a page behind it, or before it, that nobody may touch."""
    page = mmap.PAGESIZE
    pages = -(-size // page)
    whole = np.frombuffer(mmap.mmap(-1, (pages + 2) * page), dtype=np.uint8)
    for guard in (whole.ctypes.data, whole.ctypes.data + (pages + 1) * page):
        assert 0 == _LIBC.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0), os.strerror(ctypes.get_errno())
    first = page + (pages * page - size if at_end else 0)
    return whole[first : first + size]


def flat(*pieces: tuple[int, int, int]) -> CopyPlan:
    """A plan of (source offset, destination offset, length)."""
    columns = np.array(pieces, dtype=np.int64).reshape(-1, 3).T
    return CopyPlan(*(np.ascontiguousarray(column) for column in columns))


def strided(bases: Sequence[tuple[int, int]], axes: Sequence[tuple[int, int, int]], run_bytes: int) -> StridedCopy:
    """Regions from (source base, destination base)."""
    pairs = np.array(bases, dtype=np.int64).reshape(-1, 2).T
    return StridedCopy(
        np.ascontiguousarray(pairs[0]), np.ascontiguousarray(pairs[1]), tuple(Axis(*axis) for axis in axes), run_bytes
    )


@cache
def copier(
    thread_count: int = 2,
    instruction_set: str | None = None,
    *,
    inline_bytes_max: int = 1,
    stream_bytes_min: int = 1,
    chunk_bytes_max: int = 4096,
    patience_ms: int = 3_600_000,
    turn_bytes: int = 4096,
) -> HostCopier:
    """A copier that does small jobs as if they were large; also on a busy machine no priority is kept back too long."""
    tuning = Tuning(inline_bytes_max, stream_bytes_min, chunk_bytes_max, patience_ms, turn_bytes)
    return HostCopier(thread_count, instruction_set=instruction_set, tuning=tuning)


def copy(used: HostCopier, copies: Sequence[Copies], source: Bytes, destination: Bytes) -> HostCopyJob:
    """Copy and wait for the end."""
    job = used.submit(window(source), window(destination), copies)
    assert job.wait(WAIT_S)
    assert job.done
    return job


def slow_job(used: HostCopier, *, priority: int = 0) -> tuple[HostCopyJob, Bytes]:
    """A job that sets its destination to 1, byte by byte, which takes a second or so; and the destination.

    The destination must be kept until the job is done.
    """
    destination = sparse(SLOW_BYTES)
    source = np.ones(1, dtype=np.uint8)
    bytewise = strided([(0, 0)], [(SLOW_BYTES, 0, 1)], 1)
    job = used.submit(window(source), window(destination), [bytewise], priority=priority)
    _KEPT.append(source)
    return job, destination


_KEPT: list[Bytes] = []
