"""Segments times a template: pieces of one share, written out only once it is known how many there are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kvferry.core.planning.copies import Axis, CopyPlan, Offsets, StridedCopy
from kvferry.core.planning.shares import Share
from kvferry.core.planning.templates import Template
from kvferry.core.planning.tokens import Segments

_SEARCHED_PARTS_MAX = 8
"""More parts than this are sorted together without looking whether they touch at all."""


@dataclass(frozen=True, slots=True)
class Part:
    """The pieces of a share whose segments are copied alike."""

    template: Template
    source_starts: Offsets
    destination_starts: Offsets
    run_lengths: Offsets | None
    """The length of each segment's one inner run; None where the template says it."""
    by_destination: bool

    @property
    def piece_count(self) -> int:
        """Pieces."""
        return self.template.piece_count * int(self.source_starts.size)

    def write(self, plan: CopyPlan) -> None:
        """Fill a plan of just so many pieces, ordered by outer offset, segment and inner run."""
        template, inner = self.template, self.template.inner
        shape = (template.outer_source.size, self.source_starts.size, inner.piece_count)
        columns = (
            (plan.source_offsets, template.outer_source, self.source_starts, inner.source_offsets),
            (plan.destination_offsets, template.outer_destination, self.destination_starts, inner.destination_offsets),
        )
        for out, outer, starts, offsets in columns:
            both = (starts[:, None] + offsets).ravel() if offsets.size > 1 else starts + offsets
            np.add(outer[:, None], both, out=out.reshape(shape[0], both.size))
        lengths = plan.lengths.reshape(shape)
        if self.run_lengths is None:
            lengths[...] = inner.lengths
        else:
            lengths[...] = self.run_lengths[:, None]

    def order(self) -> tuple[bool, bool]:
        """Whether the pieces ascend as they are written, and if so, whether any two of them may touch."""
        inner, template = self.template.inner, self.template
        keys = (inner.source_offsets, self.source_starts, template.outer_source)
        others = (inner.destination_offsets, self.destination_starts, template.outer_destination)
        if self.by_destination:
            keys, others = others, keys
        last = inner.lengths if self.run_lengths is None else self.run_lengths
        inner_key, inner_other = (int(c[-1] - c[0]) for c in (keys[0], others[0]))
        clear, touch = _compare(keys[1], others[1], inner_key + last, inner_other + last)
        tail = int(last[-1])
        span_key = int(keys[1][-1] - keys[1][0]) + inner_key + tail
        span_other = int(others[1][-1] - others[1][0]) + inner_other + tail
        outer_clear, outer_touch = _compare(keys[2], others[2], np.array([span_key]), np.array([span_other]))
        return clear and outer_clear, touch or outer_touch


def _compare(key: Offsets, other: Offsets, key_spans: Offsets, other_spans: Offsets) -> tuple[bool, bool]:
    """Whether items that span so many bytes lie clear of each other in order, and whether two touch on both sides."""
    if key.size < 2:
        return True, False
    if key_spans.size == key.size:
        key_spans, other_spans = key_spans[:-1], other_spans[:-1]
    elif key_spans.size > 1:
        key_spans, other_spans = key_spans[-1:], other_spans[-1:]
    gaps = np.diff(key) - key_spans
    if int(gaps.min()) > 0:
        return True, False
    touching = gaps == 0
    meets = np.diff(other)[touching] == np.broadcast_to(other_spans, gaps.shape)[touching]
    return bool((gaps >= 0).all()), bool(meets.any())


def parts_of(share: Share, segments: Segments, templates: Sequence[tuple[int, Template]]) -> Iterator[Part]:
    """The parts of a share; ``templates`` has one for each number of tokens that a segment has."""
    source = share.source_base + segments.source_blocks * share.block.source_stride
    destination = share.destination_base + segments.destination_blocks * share.block.destination_stride
    if not segments.whole_tokens:
        source += segments.source_tokens * share.token.source_stride
        destination += segments.destination_tokens * share.token.destination_stride
    by_shape: dict[tuple[Axis, ...] | int, list[tuple[int, Template]]] = {}
    for count, template in templates:
        # Templates of one inner run that differ in its length only go together: their runs may touch.
        by_shape.setdefault(template.axes if template.inner.piece_count == 1 else count, []).append((count, template))
    for alike in by_shape.values():
        chosen = slice(None) if len(by_shape) == 1 else np.isin(segments.counts, [count for count, _ in alike])
        template = alike[0][1]
        here, there = source[chosen], destination[chosen]
        if template.inner.piece_count > 1:
            yield Part(template, here, there, None, segments.by_destination)
            continue
        lengths = None
        if len(alike) > 1:
            lengths = segments.counts[chosen] * (template.run_bytes // alike[0][0])
        yield _merge_segments(Part(template, here, there, lengths, segments.by_destination))


def _merge_segments(part: Part) -> Part:
    """Join runs of segments that touch on both sides."""
    if part.source_starts.size < 2:
        return part
    lengths = part.template.inner.lengths if part.run_lengths is None else part.run_lengths[:-1]
    starts, others = part.source_starts, part.destination_starts
    touching = starts[1:] - starts[:-1] == lengths
    if not np.count_nonzero(touching):
        return part
    touching &= others[1:] - others[:-1] == lengths
    if not np.count_nonzero(touching):
        return part
    firsts = np.flatnonzero(np.concatenate(([True], ~touching)))
    every = np.broadcast_to(part.template.inner.lengths, part.source_starts.shape)
    merged = np.add.reduceat(every if part.run_lengths is None else part.run_lengths, firsts)
    return Part(part.template, part.source_starts[firsts], part.destination_starts[firsts], merged, part.by_destination)


def touch(plans: Sequence[CopyPlan], *, by_destination: bool) -> bool:
    """Whether runs of two plans may touch on both sides; the runs of each ascend."""
    if len(plans) > _SEARCHED_PARTS_MAX:
        return True
    for one, other in combinations(plans, 2):
        small, large = sorted((one, other), key=lambda plan: plan.piece_count)
        if small.piece_count and _touches(small, large, by_destination=by_destination):
            return True
    return False


def _touches(small: CopyPlan, large: CopyPlan, *, by_destination: bool) -> bool:
    sides = (small.source_offsets, large.source_offsets), (small.destination_offsets, large.destination_offsets)
    (key, keys), (value, values) = reversed(sides) if by_destination else sides
    after = np.searchsorted(keys, key)
    before = np.maximum(after - 1, 0)
    begins = (keys[before] + large.lengths[before] == key) & (values[before] + large.lengths[before] == value)
    after = np.minimum(after, keys.size - 1)
    ends = (key + small.lengths == keys[after]) & (value + small.lengths == values[after])
    return bool(begins.any() or ends.any())


def strided(part: Part) -> Iterator[StridedCopy]:
    """The part as region copies, one for each length of run."""
    template = part.template
    if part.run_lengths is None:
        yield StridedCopy(part.source_starts, part.destination_starts, template.axes, template.run_bytes)
        return
    for length in np.unique(part.run_lengths).tolist():
        chosen = part.run_lengths == length
        yield StridedCopy(part.source_starts[chosen], part.destination_starts[chosen], template.axes, length)
