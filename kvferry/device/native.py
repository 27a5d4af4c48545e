"""Native code: copies between windows of host memory, and streams from and into them. The only importer of it."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from kvferry.core.checksums.formula import Words, word_keys
from kvferry.core.checksums.regions import DigestRegion
from kvferry.core.errors import Cancelled, ConfigInvalid, InvalidArgument, NotReady, ResourceExhausted, TransportFailed
from kvferry.core.planning.copies import CopyPlan, Offsets, StridedCopy
from kvferry.device import _core
from kvferry.device.copying import Copier, Copies, CopyJob, Window
from kvferry.device.streams import StreamEnd, StreamOutcome

THREADS_MAX = 64
PATIENCE_MS_MAX = 24 * 3600 * 1000
JOBS_MAX = 4096
"""Jobs under way in one copier."""


def instruction_sets() -> tuple[str, ...]:
    """What this processor can copy with, best first."""
    return tuple(_core.instruction_sets())


@dataclass(frozen=True, slots=True)
class Tuning:
    """Where a :class:`HostCopier` changes its ways."""

    inline_bytes_max: int = 256 << 10
    """A job of so few bytes, in at most 1024 runs, is copied by ``submit`` itself: waking a thread takes longer."""
    stream_bytes_min: int = 8 << 20
    """A job of so many bytes is stored past the caches, in which less stays for its reader."""
    chunk_bytes_max: int = 512 << 10
    """As much is handed to a thread at once. Smaller costs more hand-outs, larger holds other jobs and cancels up."""
    patience_ms: int = 1_000
    """A priority of which nothing was copied for so long, at most a day, gets a turn ahead of all others."""
    turn_bytes: int = 64 << 20
    """As much is copied in such a turn, as much as a batch of a read holds; then the priority waits again."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value: int = getattr(self, field.name)
            if not 1 <= value < 1 << 63:
                raise ConfigInvalid.of_field(field.name, value, "must be from 1 to 2**63 - 1")
        if self.patience_ms > PATIENCE_MS_MAX:
            raise ConfigInvalid.of_field("patience_ms", self.patience_ms, f"must be at most {PATIENCE_MS_MAX}")


class HostCopier(Copier):
    """A pool of ``thread_count`` native threads; no copy holds the interpreter's lock.

    Jobs are done by priority, those of one priority in turns; a priority that was kept back for too long gets a turn
    all the same (``Tuning.patience_ms``). A tiny job is done when ``submit`` returns. The memory of
    both windows must stay mapped until the job is done; dropping the job does not end it. At exit of the interpreter
    what is still under way is cancelled.

    With ``wake_descriptor``, an eventfd, 1 is added to it at the end of every job that is not silent, those that
    ``submit`` did included.
    The copier keeps a duplicate of it.

    Raises:
        ConfigInvalid: not 1 to ``THREADS_MAX`` threads, or an instruction set that the processor has not.
        TransportFailed: the system gives no thread, or ``wake_descriptor`` is none.
    """

    def __init__(
        self,
        thread_count: int,
        wake_descriptor: int | None = None,
        *,
        instruction_set: str | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        if not 1 <= thread_count <= THREADS_MAX:
            raise ConfigInvalid.of_field("thread_count", thread_count, f"must be from 1 to {THREADS_MAX}")
        if instruction_set is not None and instruction_set not in instruction_sets():
            known = ", ".join(instruction_sets())
            raise ConfigInvalid.of_field("instruction_set", instruction_set, f"this processor has {known}")
        self._wakes = wake_descriptor is not None
        tuning = Tuning() if tuning is None else tuning
        try:
            self._core = _core.Copier(
                thread_count=thread_count,
                jobs_max=JOBS_MAX,
                wake_descriptor=-1 if wake_descriptor is None else wake_descriptor,
                instruction_set=instruction_set or "",
                inline_bytes_max=tuning.inline_bytes_max,
                stream_bytes_min=tuning.stream_bytes_min,
                chunk_bytes_max=tuning.chunk_bytes_max,
                patience_ms=tuning.patience_ms,
                turn_bytes=tuning.turn_bytes,
            )
        except OSError as error:
            raise TransportFailed(f"making a copier of {thread_count} threads: {error}") from error
        # Memory is unmapped as the interpreter ends; no thread may copy then.
        self._end = weakref.finalize(self, self._core.close)

    @property
    def wakes(self) -> bool:
        """Whether the end of a job is signalled on the eventfd."""
        return self._wakes

    @property
    def instruction_set(self) -> str:
        """What it copies with."""
        return self._core.instruction_set

    def submit(
        self,
        source: Window,
        destination: Window,
        copies: Sequence[Copies],
        *,
        priority: int = 0,
        silent: bool = False,
    ) -> "HostCopyJob":
        """Start copying. All arrays are copied before it returns; later changes to them change nothing.

        Raises:
            InvalidArgument: a piece leaves a window, the windows overlap, or more is written than the destination has;
                names the copy and the piece. Nothing was copied.
            ResourceExhausted: ``JOBS_MAX`` jobs are under way.
            NotReady: the copier is closed, or belongs to the process that this one was forked from.
        """
        try:
            job = self._core.submit(
                _plan_of(copies), _pair("source", source), _pair("destination", destination), priority, silent
            )
        except _core.PlanError as error:
            raise _invalid(error) from error
        except _core.TooManyJobs as error:
            raise ResourceExhausted(str(error)) from error
        except _core.CopierUnusable as error:
            raise NotReady(str(error)) from error
        return HostCopyJob(job)

    def wait(self, job: "HostCopyJob", timeout_s: float) -> bool:
        """Whether the job was done within the time."""
        return job.wait(timeout_s)

    def close(self) -> None:
        """Cancel what is under way, wait for its end and end the threads. Twice does no harm."""
        self._end()


class HostCopyJob(CopyJob):
    """A job of a :class:`HostCopier`."""

    __slots__ = ("_core",)

    def __init__(self, core: _core.Job) -> None:
        self._core = core

    @property
    def done(self) -> bool:
        """Whether no thread touches either window any more."""
        return self._core.done

    @property
    def copied_bytes(self) -> int:
        """Bytes copied so far; exact once the job is done."""
        return self._core.copied_bytes

    def cancel(self) -> None:
        """Hand out no more; threads that are copying stop between two pieces, or inside a long one."""
        self._core.cancel()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was done within the time. Other threads of the interpreter run meanwhile.

        Raises:
            NotReady: this process was forked from the one that copies.
        """
        try:
            return self._core.wait(max(timeout_s, 0.0))
        except _core.CopierUnusable as error:
            raise NotReady(str(error)) from error


def ceiling_copy(
    source: Window, destination: Window, plan: CopyPlan, thread_count: int, *, non_temporal: bool = True
) -> float:
    """Seconds that the plainest fast loop takes to copy the same pieces by so many threads, their start not counted.

    ``non_temporal``: stores past the caches, else ``memcpy``. Shares no code with :class:`HostCopier`.

    Raises:
        InvalidArgument: a piece leaves a window.
    """
    copy = _core.ceiling_copy if non_temporal else _core.plain_copy
    try:
        return copy(
            _pair("source", source),
            _pair("destination", destination),
            _array(plan.source_offsets),
            _array(plan.destination_offsets),
            _array(plan.lengths),
            thread_count,
        )
    except _core.PlanError as error:
        raise _invalid(error) from error


CancelFlag = _core.CancelFlag
"""Raised by one thread to end what another one receives."""


def stream_send(
    socket: int, prefix: bytes, window: Window, offsets: Offsets, lengths: Offsets, *, limit_s: float
) -> StreamOutcome:
    """Send ``prefix`` and then pieces of a window, gathered by the kernel. Negative ``limit_s``: without a limit.

    Raises:
        InvalidArgument: a piece leaves the window. Nothing was sent.
    """
    try:
        ended = _core.stream_send(socket, prefix, _bounds(window), _array(offsets), _array(lengths), limit_s)
    except _core.PlanError as error:
        raise _invalid(error) from error
    return _outcome(ended)


def stream_receive(
    socket: int,
    window: Window,
    offsets: Offsets,
    lengths: Offsets,
    *,
    suffix_bytes: int,
    limit_s: float,
    flag: CancelFlag | None = None,
    wake_descriptor: int = -1,
) -> tuple[StreamOutcome, bytes]:
    """Receive into pieces of a window, scattered by the kernel, and then a suffix of so many bytes.

    Another thread ends it by raising ``flag`` and then adding to ``wake_descriptor``, an eventfd.

    Raises:
        InvalidArgument: a piece leaves the window. Nothing was received.
    """
    try:
        ended, suffix = _core.stream_receive(
            socket, _bounds(window), _array(offsets), _array(lengths), suffix_bytes, limit_s, flag, wake_descriptor
        )
    except _core.PlanError as error:
        raise _invalid(error) from error
    return _outcome(ended), suffix


def stream_discard(socket: int, size_bytes: int, *, limit_s: float) -> StreamOutcome:
    """Receive so many bytes into nothing."""
    return _outcome(_core.stream_discard(socket, size_bytes, limit_s))


def _outcome(ended: tuple[int, int, int]) -> StreamOutcome:
    return StreamOutcome(StreamEnd(ended[0]), ended[1], ended[2])


def _bounds(window: Window) -> tuple[int, int]:
    return window.address, window.size_bytes


def _plan_of(copies: Sequence[Copies]) -> _core.Plan:
    plan = _core.Plan()
    for index, copy in enumerate(copies):
        try:
            _add(plan, copy)
        except TypeError as error:
            raise InvalidArgument.of_field(f"copies[{index}]", copy, "holds a number of more than 64 bits") from error
    return plan


def _add(plan: _core.Plan, copy: Copies) -> None:
    match copy:
        case CopyPlan(source_offsets, destination_offsets, lengths):
            plan.add_runs(_array(source_offsets), _array(destination_offsets), _array(lengths))
        case StridedCopy(source_bases, destination_bases, axes, run_bytes):
            plan.add_region(_array(source_bases), _array(destination_bases), axes, run_bytes)


def _pair(name: str, window: Window) -> tuple[int, int]:
    for number in (window.address, window.size_bytes):
        if not 0 <= number < 1 << 64:
            raise InvalidArgument.of_field(name, window, "is no memory of this process")
    return window.address, window.size_bytes


def _array(offsets: Offsets) -> Offsets:
    return np.ascontiguousarray(offsets, dtype=np.int64)


def _invalid(error: _core.PlanError) -> InvalidArgument:
    field, value, why = error.args
    return InvalidArgument.of_field(field, value, why)


def digest_instruction_sets() -> tuple[str, ...]:
    """What this processor can sum with, best first."""
    return tuple(_core.digest_instruction_sets())


def digest_host(
    window: Window,
    region: DigestRegion,
    thread_count: int,
    flag: CancelFlag | None = None,
    *,
    instruction_set: str | None = None,
) -> Words:
    """The sums of a region of host memory, ``[row, cell]``, by at most so many threads.

    Raises:
        InvalidArgument: the region leaves the window.
        ConfigInvalid: as for :class:`HostCopier`.
        Cancelled: another thread raised ``flag``.
    """
    if not 1 <= thread_count <= THREADS_MAX:
        raise ConfigInvalid.of_field("thread_count", thread_count, f"must be from 1 to {THREADS_MAX}")
    if instruction_set is not None and instruction_set not in digest_instruction_sets():
        known = ", ".join(digest_instruction_sets())
        raise ConfigInvalid.of_field("instruction_set", instruction_set, f"this processor has {known}")
    sums = np.zeros((region.row_count, region.cell_offsets.size), dtype=np.uint64)
    try:
        done = _core.add_digest(
            _pair("window", window),
            _array(region.bases),
            _array(region.tokens),
            _array(region.counts),
            _array(region.rows),
            _array(region.cell_offsets),
            np.ascontiguousarray(region.cell_keys),
            region.inner,
            (region.token_stride, region.dim_stride, region.run_elements, region.element_bytes),
            word_keys(),
            sums,
            thread_count,
            flag,
            instruction_set or "",
        )
    except _core.PlanError as error:
        raise _invalid(error) from error
    if not done:
        raise Cancelled("the digest was cancelled")
    return sums
