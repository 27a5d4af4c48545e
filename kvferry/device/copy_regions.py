"""What a fused copy is made of: checked, folded regions of byte runs. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from kvferry.core.errors import InvalidArgument
from kvferry.core.planning.copies import Axis, CopyPlan, Offsets, StridedCopy
from kvferry.device.copying import Copies, Window

AXES_MAX = 8
RUNS_MAX = (1 << 31) - 1
"""Of a region: the kernel counts them in 31 bits."""

RUNS_OF_A_COPY_MAX = 1 << 40
"""More than any memory holds; only steps of 0 come here."""

RUN_SIZES_MAX = 8
"""A flat plan with so many different lengths becomes one region for each; with more, regions of similar lengths."""

CHUNK_BYTES = 16384
"""Longer runs of a flat plan with many different lengths are cut."""

WIDEST_UNIT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Region:
    """Runs found by stepping along ``axes`` from each pair of bases, which are relative to the windows."""

    source_bases: Offsets
    destination_bases: Offsets
    axes: tuple[Axis, ...]
    """Outermost first, folded: no two run on in both windows."""
    run_bytes: int
    """Of every run; of the longest where ``lengths`` says more."""
    lengths: Offsets | None
    """Bytes of each run, where they differ; then there are no axes."""
    unit_bytes: int
    """Widest access, 16 or a smaller power of two, that all addresses and lengths are multiples of."""
    base_bits: int
    """All bases of both sides, or-ed together: a bound on the largest, and their common alignment."""
    runs_per_base: int = field(init=False)
    """Runs that one pair of bases stands for."""
    run_count: int = field(init=False)
    """All runs."""
    total_bytes: int = field(init=False)
    """Bytes of all runs."""

    def __post_init__(self) -> None:
        runs_per_base = prod([axis.length for axis in self.axes])
        run_count = int(self.source_bases.size) * runs_per_base
        total_bytes = run_count * self.run_bytes if self.lengths is None else int(self.lengths.sum())
        object.__setattr__(self, "runs_per_base", runs_per_base)
        object.__setattr__(self, "run_count", run_count)
        object.__setattr__(self, "total_bytes", total_bytes)

    def part(self, first: int, count: int) -> "Region":
        """The region with only ``count`` of the bases."""
        chosen = slice(first, first + count)
        return replace(
            self,
            source_bases=self.source_bases[chosen],
            destination_bases=self.destination_bases[chosen],
            lengths=None if self.lengths is None else self.lengths[chosen],
        )


def regions_of(source: Window, destination: Window, copies: Sequence[Copies]) -> list[Region]:
    """All copies as regions that lie inside both windows.

    Raises:
        InvalidArgument: a run leaves a window, or a copy contradicts itself; names the copy and the piece.
    """
    windows = (source, destination)
    regions: list[Region] = []
    for number, copy in enumerate(copies):
        field = f"copies[{number}]"
        if isinstance(copy, CopyPlan):
            regions += _flat(field, windows, copy)
        else:
            regions += _strided(field, windows, copy)
    return regions


def _strided(field: str, windows: tuple[Window, Window], copy: StridedCopy) -> Iterator[Region]:
    bases = _arrays(field, copy.source_bases, copy.destination_bases)
    if len(copy.axes) > AXES_MAX:
        raise InvalidArgument.of_field(f"{field}.axes", len(copy.axes), f"at most {AXES_MAX} are allowed")
    if copy.run_bytes < 0 or any(axis.length < 0 for axis in copy.axes):
        raise InvalidArgument.of_field(field, (copy.run_bytes, copy.axes), "lengths must not be negative")
    if not bases[0].size or not copy.run_bytes or any(axis.length == 0 for axis in copy.axes):
        return
    axes, run_bytes = folded(copy.axes, copy.run_bytes)
    if (runs := prod([axis.length for axis in axes]) * int(bases[0].size)) > RUNS_OF_A_COPY_MAX:
        raise InvalidArgument.of_field(field, runs, f"at most {RUNS_OF_A_COPY_MAX} runs are allowed")
    bits = [_checked(field, side, windows[side], bases[side], axes, run_bytes) for side in (0, 1)]
    yield from _few_enough(_region(windows, bases, axes, run_bytes, bits))


def folded(axes: Sequence[Axis], run_bytes: int) -> tuple[tuple[Axis, ...], int]:
    """The same runs with fewer axes: what runs on in both windows is joined."""
    kept: list[Axis] = []
    for axis in reversed(axes):
        if axis.length == 1:
            continue
        if not kept and axis.source_stride == run_bytes == axis.destination_stride:
            run_bytes *= axis.length
        elif kept and all(axis[side] == kept[-1].length * kept[-1][side] for side in (1, 2)):
            kept[-1] = Axis(axis.length * kept[-1].length, *kept[-1][1:])
        else:
            kept.append(axis)
    return tuple(reversed(kept)), run_bytes


def _flat(field: str, windows: tuple[Window, Window], plan: CopyPlan) -> Iterator[Region]:
    source, destination = _arrays(field, plan.source_offsets, plan.destination_offsets)
    lengths, _ = _arrays(field, plan.lengths, plan.source_offsets)
    if not lengths.size:
        return
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest == longest:
        yield from _strided(field, windows, StridedCopy(source, destination, (), longest))
        return
    if shortest < 0:
        raise InvalidArgument.of_field(f"{field}.lengths", shortest, "must not be negative")
    for side, offsets in enumerate((source, destination)):
        _check_pieces(field, side, windows[side], offsets, lengths)
    sizes = np.unique(lengths).tolist()
    if len(sizes) <= RUN_SIZES_MAX:
        for size in sizes:
            chosen = lengths == size
            yield from _strided(field, windows, StridedCopy(source[chosen], destination[chosen], (), size))
        return
    yield from _ragged(windows, source, destination, lengths)


def _ragged(
    windows: tuple[Window, Window], source: Offsets, destination: Offsets, lengths: Offsets
) -> Iterator[Region]:
    """Regions of runs of similar length, so that a tile of so many runs is never much shorter than another."""
    chunks = np.maximum(-(-lengths // CHUNK_BYTES), 1)
    if int(chunks.max()) > 1:
        inside = (np.arange(int(chunks.sum())) - np.repeat(np.cumsum(chunks) - chunks, chunks)) * CHUNK_BYTES
        source, destination = np.repeat(source, chunks) + inside, np.repeat(destination, chunks) + inside
        lengths = np.minimum(np.repeat(lengths, chunks) - inside, CHUNK_BYTES)
    exponents = np.frexp(np.maximum(lengths - 1, 0).astype(np.float64))[1]
    for exponent in np.unique(exponents).tolist():
        chosen = (exponents == exponent) & (lengths > 0)
        if not chosen.any():
            continue
        bases = source[chosen], destination[chosen]
        bits = [int(np.bitwise_or.reduce(side)) for side in bases]
        yield from _few_enough(_region(windows, bases, (), 1 << exponent, bits, lengths[chosen]))


def _region(
    windows: tuple[Window, Window],
    bases: tuple[Offsets, Offsets],
    axes: tuple[Axis, ...],
    run_bytes: int,
    bits: list[int],
    lengths: Offsets | None = None,
) -> Region:
    steps = [axis.source_stride | axis.destination_stride for axis in axes]
    sizes = run_bytes if lengths is None else int(np.bitwise_or.reduce(lengths))
    together = windows[0].address | windows[1].address | bits[0] | bits[1] | sizes | WIDEST_UNIT_BYTES
    for step in steps:
        together |= step
    return Region(*bases, axes, run_bytes, lengths, together & -together, bits[0] | bits[1])


def _arrays(field: str, source: Offsets, destination: Offsets) -> tuple[Offsets, Offsets]:
    if source.shape != destination.shape or source.ndim != 1:
        shapes = (source.shape, destination.shape)
        raise InvalidArgument.of_field(field, shapes, "offsets and lengths must be arrays of one length")
    return source.astype(np.int64, copy=False), destination.astype(np.int64, copy=False)


def _checked(field: str, side: int, window: Window, bases: Offsets, axes: tuple[Axis, ...], run_bytes: int) -> int:
    """Check that every run from every base stays inside the window; returns the bases or-ed together.

    The sums are Python's integers, so that nothing overflows. The bits are negative if any base is, and no less than
    the largest, which often spares looking for it.
    """
    before, behind = 0, run_bytes
    for axis in axes:
        reach = (axis.length - 1) * axis[1 + side]
        before, behind = before + max(-reach, 0), behind + max(reach, 0)
    bits = int(np.bitwise_or.reduce(bases))
    lowest = 0 if bits >= 0 and not before else int(bases.min())
    if lowest < before:
        _refuse(field, side, window, bases, int(bases.argmin()), (before, behind))
    if bits > window.size_bytes - behind and int(bases.max()) > window.size_bytes - behind:
        _refuse(field, side, window, bases, int(bases.argmax()), (before, behind))
    return bits


def _check_pieces(field: str, side: int, window: Window, offsets: Offsets, lengths: Offsets) -> None:
    room = np.int64(window.size_bytes) - np.minimum(lengths, window.size_bytes)
    outside = (offsets < 0) | (lengths > window.size_bytes) | (offsets > room)
    if outside.any():
        piece = int(outside.argmax())
        _refuse(field, side, window, offsets, piece, (0, int(lengths[piece])))


def _refuse(field: str, side: int, window: Window, bases: Offsets, piece: int, reach: tuple[int, int]) -> None:
    name = ("source", "destination")[side]
    first, last = int(bases[piece]) - reach[0], int(bases[piece]) + reach[1]
    raise InvalidArgument.of_field(
        f"{field}.{name}[{piece}]",
        int(bases[piece]),
        f"{first} to {last} leave the {window.size_bytes} of the window",
    )


def _few_enough(region: Region) -> Iterator[Region]:
    """The region, in parts if it has more runs than the kernel counts."""
    if region.runs_per_base > RUNS_MAX:
        axis, *inner = region.axes
        each = max(RUNS_MAX // prod(step.length for step in inner), 1)
        for first in range(0, axis.length, each):
            step = axis._replace(length=min(each, axis.length - first))
            axes = (step, *inner) if step.length > 1 else tuple(inner)
            yield from _few_enough(_moved(region, axes, first * axis.source_stride, first * axis.destination_stride))
        return
    if region.run_count <= RUNS_MAX:
        yield region
        return
    each = RUNS_MAX // region.runs_per_base
    for first in range(0, int(region.source_bases.size), each):
        yield region.part(first, each)


def _moved(region: Region, axes: tuple[Axis, ...], source: int, destination: int) -> Region:
    bases = region.source_bases + source, region.destination_bases + destination
    bits = int(np.bitwise_or.reduce(bases[0])) | int(np.bitwise_or.reduce(bases[1]))
    return replace(region, source_bases=bases[0], destination_bases=bases[1], axes=axes, base_bits=bits)
