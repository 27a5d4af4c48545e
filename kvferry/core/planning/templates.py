"""How a segment of so many tokens is copied, seen from its first byte: the part of a plan that requests share."""

from dataclasses import dataclass

import numpy as np

from kvferry.core.planning.copies import Axis, CopyPlan, Offsets, joined, steps
from kvferry.core.planning.shares import Share


@dataclass(frozen=True, slots=True)
class Template:
    """The runs of a segment: every one of ``inner`` at every one of the ``outer`` offsets.

    Outer axes lie outside blocks in the pool of the side by which segments are ordered, inner ones inside. So pieces
    ordered by outer offset, segment and inner run ascend in that pool.
    """

    outer_source: Offsets
    outer_destination: Offsets
    inner: CopyPlan
    axes: tuple[Axis, ...]
    """All axes outside a run, outermost first."""
    run_bytes: int

    @property
    def piece_count(self) -> int:
        """Runs of one segment."""
        return int(self.outer_source.size) * self.inner.piece_count


def folded(share: Share, token_count: int) -> tuple[tuple[Axis, ...], int]:
    """The axes of a segment that are not part of a run, innermost in the source first, and the bytes of a run."""
    token = Axis(token_count, share.token.source_stride, share.token.destination_stride)
    axes = sorted((axis for axis in (*share.axes, token) if axis.length > 1), key=lambda axis: axis.source_stride)
    run = share.element_bytes
    while axes and axes[0].source_stride == axes[0].destination_stride == run:
        run *= axes.pop(0).length
    return _merged(axes), run


def piece_count(axes: tuple[Axis, ...]) -> int:
    """Runs of one segment."""
    count = 1
    for axis in axes:
        count *= axis.length
    return count


def template_of(share: Share, token_count: int, *, by_destination: bool) -> Template:
    """The template for segments of ``token_count`` tokens."""
    axes, run = folded(share, token_count)
    block = share.block.destination_stride if by_destination else share.block.source_stride

    def stride(axis: Axis) -> int:
        return axis.destination_stride if by_destination else axis.source_stride

    ordered = sorted(axes, key=stride, reverse=True)
    outer = tuple(axis for axis in ordered if stride(axis) > block)
    source, destination = steps(tuple(axis for axis in ordered if stride(axis) <= block))
    inner = CopyPlan(source, destination, np.full(source.size, run, dtype=np.int64))
    return Template(*steps(outer), joined(inner, by_destination=by_destination), axes[::-1], run)


def _merged(axes: list[Axis]) -> tuple[Axis, ...]:
    """Make one axis of two neighbours of which the outer goes on where the inner ends, on both sides."""
    merged: list[Axis] = []
    for axis in axes:
        inner = merged[-1] if merged else Axis(0, 0, 0)
        if inner.length and axis[1:] == (inner.length * inner.source_stride, inner.length * inner.destination_stride):
            merged[-1] = Axis(inner.length * axis.length, inner.source_stride, inner.destination_stride)
        else:
            merged.append(axis)
    return tuple(merged)
