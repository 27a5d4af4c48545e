"""What a destination rank takes from each source rank: boxes of equal steps through both pools."""

from dataclasses import dataclass

import numpy as np

from kvferry.core.layouts import GroupPlacement, LayerGroup, WorkerLayout
from kvferry.core.planning.copies import Axis
from kvferry.core.planning.holdings import Cells, Ranks, positions, sources_of


@dataclass(frozen=True, slots=True)
class Share:
    """A box of one layer group that is read from one source rank, seen from block 0, token 0 of both sides."""

    group: str
    source_rank: int
    source_base: int
    destination_base: int
    element_bytes: int
    axes: tuple[Axis, ...]
    """Layers, K and V, heads, elements."""
    block: Axis
    token: Axis
    """Strides only; both counts are 0."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        size = self.element_bytes
        for axis in self.axes:
            size *= axis.length
        return size


def shares_of(
    source: WorkerLayout, destination: WorkerLayout, rank: int, data_parallel_rank: int, shift: int
) -> tuple[Share, ...]:
    """Every share of a destination rank; the two layouts can be paired."""
    shares: list[Share] = []
    sources = source.ranks_of(data_parallel_rank)
    placed = {number.rank: number for number in sources}
    for wanted in destination.ranks[rank].placements:
        group = destination.group(wanted.group)
        chosen = sources_of(group, sources, destination, rank, shift)
        for number in np.unique(chosen[chosen >= 0]).tolist():
            held = placed[number].placement(wanted.group)
            assert held is not None, "a rank is chosen only for what it holds"
            for layers, heads in boxes(chosen == number):
                shares += _boxed(number, group, held, wanted, layers, heads)
    return tuple(shares)


def boxes(cells: Cells) -> list[tuple[Ranks, Ranks]]:
    """Layers and heads of boxes that together are exactly these cells: layers with equal heads go together."""
    patterns, kinds = np.unique(cells, axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    boxes = [(np.flatnonzero(kinds == kind), np.flatnonzero(pattern)) for kind, pattern in enumerate(patterns)]
    return [(layers, heads) for layers, heads in boxes if heads.size]


def _boxed(
    number: int, group: LayerGroup, held: GroupPlacement, wanted: GroupPlacement, layers: Ranks, heads: Ranks
) -> list[Share]:
    """Cut a box where its layers or heads do not follow each other in equal steps on both sides."""
    names = np.asarray(group.layers, dtype=np.int64)[layers]
    layer_steps = _equal_steps(positions(held.layers, names.tolist()), positions(wanted.layers, names.tolist()))
    head_steps = _equal_steps(positions(held.heads, heads.tolist()), positions(wanted.heads, heads.tolist()))
    here, there = held.strides, wanted.strides
    return [
        Share(
            group=group.name,
            source_rank=number,
            source_base=held.base_bytes + first_layer[0] * here.layer + first_head[0] * here.head,
            destination_base=wanted.base_bytes + first_layer[1] * there.layer + first_head[1] * there.head,
            element_bytes=group.element_type.size_bytes,
            axes=(
                Axis(layer.length, layer.source_stride * here.layer, layer.destination_stride * there.layer),
                Axis(group.kv_factor, here.kv, there.kv),
                Axis(head.length, head.source_stride * here.head, head.destination_stride * there.head),
                Axis(group.head_dim, here.dim, there.dim),
            ),
            block=Axis(0, here.block, there.block),
            token=Axis(0, here.token, there.token),
        )
        for first_layer, layer in layer_steps
        for first_head, head in head_steps
    ]


def _equal_steps(here: Ranks, there: Ranks) -> list[tuple[tuple[int, int], Axis]]:
    """First positions, count and steps of runs that step equally on both sides."""
    pairs = list(zip(here.tolist(), there.tolist(), strict=True))
    found: list[tuple[tuple[int, int], Axis]] = []
    first = 0
    while first < len(pairs):
        stop = first + 1
        step = (0, 0)
        if stop < len(pairs):
            step = _difference(pairs[first], pairs[stop])
            while stop < len(pairs) and _difference(pairs[stop - 1], pairs[stop]) == step:
                stop += 1
        found.append((pairs[first], Axis(stop - first, *step)))
        first = stop
    return found


def _difference(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return other[0] - one[0], other[1] - one[1]
