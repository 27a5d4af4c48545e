"""The fused copy on a CUDA device: a whole plan in one kernel launch."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import structlog

from kvferry.core.errors import ConfigInvalid, InvalidArgument, PoolTooLarge, ResourceExhausted, TransportFailed
from kvferry.device.copy_kernels import CopyKernels, KernelShape, load_kernels
from kvferry.device.copy_regions import Region, regions_of
from kvferry.device.copy_slots import CAPACITY_BYTES_MAX, Slot
from kvferry.device.copy_table import REGIONS_MAX, Table, blocks_for, bulk_run_bytes_min, tables_of
from kvferry.device.copying import Copier, Copies, CopyJob, Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_streams import Stream
from kvferry.device.kernel_cache import default_directory

JOBS_MAX = 4096
"""Under way and waiting."""

LAUNCHES_MAX = 4
"""Handed to the device; what is more waits in order of priority."""

SATURATED_CAPABILITY = (9, 0)
"""Of the devices whose memory half of the multiprocessors was seen to fill."""

CLOSE_SECONDS_MAX = 30.0
_NUMBERS = 1 << 32

_log = structlog.get_logger("kvferry.device.cuda_copy")


class CudaCopyJob(CopyJob):
    """A :class:`~kvferry.device.copying.CopyJob` on a device."""

    def __init__(self, copier: CudaCopier, tables: Sequence[Table], windows: tuple[Window, Window]) -> None:
        self._copier = copier
        self.windows = windows
        self.waiting = deque(tables)
        self.launched = 0
        self.ended_bytes = 0
        self.ended_seconds = 0.0
        self.failure: TransportFailed | None = None

    @property
    def done(self) -> bool:
        """Whether all was copied, or it was cancelled and nothing touches the windows any more.

        Raises:
            TransportFailed: the device failed.
        """
        return self._copier.is_done(self)

    @property
    def copied_bytes(self) -> int:
        """Bytes copied by the launches that have ended."""
        return self.ended_bytes

    @property
    def device_seconds(self) -> float:
        """From the start of each launch that has ended to its end, without what Python does around it."""
        return self.ended_seconds

    def cancel(self) -> None:
        """Ask for an early end, between two tiles."""
        self._copier.cancel(self)


class _Running:
    """A launch that was handed to the device."""

    def __init__(self, job: CudaCopyJob, slot: Slot, number: int) -> None:
        self.job = job
        self.slot = slot
        self.number = number


class CudaCopier(Copier):
    """A :class:`~kvferry.device.copying.Copier` with a stream of its own and a bounded share of the device.

    Windows are addresses that the device reaches: its own memory, a peer's mapped by IPC, registered host memory. Up to
    ``LAUNCHES_MAX`` launches are with the device, which takes one after the other; what waits goes by priority, then in
    the order of coming. The owner polls ``done``, of any job: that also hands on what waits.
    """

    def __init__(
        self,
        device: CudaDevice,
        *,
        sm_count_max: int | None,
        urgent: bool = True,
        cache_directory: Path | None = None,
        shape: KernelShape | None = None,
    ) -> None:
        """Load the kernels, compiling them unless ``cache_directory`` has them.

        Copies use at most ``sm_count_max`` multiprocessors; None: all. ``urgent``: the stream's kernels start before
        those of others on the device.

        Raises:
            ConfigInvalid: ``sm_count_max`` is not positive, or there is no run-time compiler.
            TransportFailed: the device or the compiler failed.
        """
        if sm_count_max is not None and sm_count_max < 1:
            raise ConfigInvalid.of_field("sm_count_max", sm_count_max, "must be positive")
        self._device = device
        present = device.multiprocessor_count
        self._blocks = min(sm_count_max or present, present)
        self._saturating = present // 2 if device.compute_capability == SATURATED_CAPABILITY else present
        device.make_current()
        directory = default_directory() if cache_directory is None else cache_directory
        self._kernels: CopyKernels = load_kernels(device, directory, shape or KernelShape(), REGIONS_MAX)
        self._stream = Stream.create(urgent=urgent)
        self._uploads = Stream.create(urgent=True)
        self._cancels = Stream.create(urgent=True)
        self._free = [Slot(device) for _ in range(LAUNCHES_MAX)]
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int, CudaCopyJob]] = []
        self._running: deque[_Running] = deque()
        self._order = count()
        self._numbers = count(1)
        self._failure: TransportFailed | None = None
        self._closed = False

    @property
    def wakes(self) -> bool:
        """False: the owner polls."""
        return False

    @property
    def failure(self) -> TransportFailed | None:
        """Why nothing can be copied any more: the device's context is lost to this process for good."""
        return self._failure

    def submit(
        self,
        source: Window,
        destination: Window,
        copies: Sequence[Copies],
        *,
        priority: int = 0,
        silent: bool = True,
    ) -> CudaCopyJob:
        """Start copying; see :meth:`~kvferry.device.copying.Copier.submit`. No end is signalled.

        Raises:
            InvalidArgument: a piece leaves a window, or there are too many; names it. Nothing was copied.
            ResourceExhausted: ``JOBS_MAX`` jobs are waiting.
            TransportFailed: the device failed, now or before.
        """
        tables = self._tables(regions_of(source, destination, copies))
        job = CudaCopyJob(self, tables, (source, destination))
        with self._lock:
            if self._closed:
                raise InvalidArgument("the copier is closed")
            if self._failure is not None:
                raise self._failure
            if len(self._waiting) >= JOBS_MAX:
                raise ResourceExhausted(f"{JOBS_MAX} copies are waiting for the device")
            self._device.make_current()
            if tables:
                heapq.heappush(self._waiting, (-priority, next(self._order), job))
            self._guarded(self._advance)
        return job

    def _tables(self, regions: Sequence[Region]) -> list[Table]:
        shape = self._kernels.shape
        warps, bulk_from = shape.plain_warps, None
        if self._kernels.bulk is not None:
            warps, bulk_from = shape.bulk_warps, bulk_run_bytes_min(self._blocks)
        return list(
            tables_of(regions, capacity_bytes=CAPACITY_BYTES_MAX, warps=self._blocks * warps, bulk_from_bytes=bulk_from)
        )

    def is_done(self, job: CudaCopyJob) -> bool:
        """Whether the job has ended; see :attr:`CudaCopyJob.done`."""
        with self._lock:
            if job.failure is None and (job.waiting or job.launched):
                self._device.make_current()
                self._guarded(self._advance)
            if job.failure is not None:
                raise job.failure
            return not job.waiting and not job.launched

    def cancel(self, job: CudaCopyJob) -> None:
        """Drop what has not been launched, and tell what has been to stop."""
        with self._lock:
            job.waiting.clear()
            if self._failure is not None or not job.launched:
                return
            self._device.make_current()
            for running in self._running:
                if running.job is job:
                    address, number = running.slot.cancel_address, running.number
                    self._guarded(partial(self._cancels.write_word, address, number))

    def close(self) -> None:
        """Cancel everything, wait for its end and release the device's memory.

        Raises:
            TransportFailed: the device did not end in time; then nothing is released.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            jobs = {running.job for running in self._running}
            for _, _, job in self._waiting:
                job.waiting.clear()
            self._waiting.clear()
        for job in jobs:
            self.cancel(job)
        self._drain()
        with self._lock:
            self._device.make_current()
            if self._failure is None:
                self._release()
            else:
                # The context is broken: only the end of the process gives its memory back.
                _log.error("the copier's memory is left to the broken context", reason=self._failure.message)

    def _drain(self) -> None:
        deadline = time.monotonic() + CLOSE_SECONDS_MAX
        while True:
            with self._lock:
                if not self._running or self._failure is not None:
                    return
                self._device.make_current()
                self._guarded(self._advance)
            if time.monotonic() > deadline:
                raise TransportFailed(f"copies did not end within {CLOSE_SECONDS_MAX} s of being cancelled")
            time.sleep(0.0002)

    def _release(self) -> None:
        streams = self._cancels, self._uploads, self._stream
        for stream in streams:
            stream.synchronize()
        for slot in self._free:
            slot.close()
        self._free.clear()
        for stream in streams:
            stream.destroy()
        self._kernels.unload()

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take a step; if the device fails, so does everything under way."""
        try:
            step()
        except TransportFailed as error:
            self._failure = error
            _log.error("the device failed", reason=error.message)
            for job in [running.job for running in self._running] + [job for _, _, job in self._waiting]:
                job.failure = error
            self._running.clear()
            self._waiting.clear()

    def _advance(self) -> None:
        while self._running and self._running[0].slot.ended.is_past():
            ended = self._running.popleft()
            ended.job.launched -= 1
            ended.job.ended_bytes += ended.slot.copied_bytes()
            ended.job.ended_seconds += ended.slot.seconds()
            self._free.append(ended.slot)
        while self._free and self._waiting:
            job = self._waiting[0][2]
            if job.waiting:
                self._launch(job)
            if not job.waiting:
                heapq.heappop(self._waiting)

    def _launch(self, job: CudaCopyJob) -> None:
        table, slot = job.waiting[0], self._free[-1]
        number = next(self._numbers) % (_NUMBERS - 1) + 1
        blocks = blocks_for(table, self._blocks, self._saturating)
        try:
            slot.prepare(self._uploads, table, job.windows, number)
        except PoolTooLarge as error:
            job.waiting.clear()
            job.failure = TransportFailed(f"no memory for the table of a copy: {error.message}")
            return
        bulk = self._kernels.bulk if table.bulk else None
        kernel = bulk or self._kernels.plain
        shared = self._kernels.shared_bytes(len(table.regions), bulk=bulk is not None)
        self._stream.record(slot.begun)
        kernel.launch(self._stream, blocks, shared, slot.parameter_pointers)
        if slot.uploads:
            self._stream.wait_for(slot.uploaded)
        self._stream.record(slot.ended)
        job.waiting.popleft()
        job.launched += 1
        self._free.pop()
        self._running.append(_Running(job, slot, number))
