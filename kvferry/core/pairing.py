"""The pairing verdict: whether KV can move from one worker to another, and every reason why not.

It is computed from the two layouts alone, and a plan is made only of layouts that pass it, so that nothing can pass
here and then fail when a request is waiting.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kvferry.core.errors import cut
from kvferry.core.layouts import LayerGroup, RankLayout, WorkerLayout, block_bytes
from kvferry.core.planning.holdings import Cells, covered_by
from kvferry.core.reasons import Reason

ROWS_MAX = 1 << 23
"""Bound on the rows of one block on one rank, a row being what lies in one run whatever the order in memory."""
_LISTED_MAX = 8
_LAYOUTS_KEPT_MAX = 1024


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One reason why two workers cannot be paired."""

    field: str
    source: str
    destination: str
    reason: Reason = Reason.LAYOUT_MISMATCH

    def __str__(self) -> str:
        return f"{self.field}: source has {self.source}, destination {self.destination}"


def mismatches(source: WorkerLayout, destination: WorkerLayout) -> tuple[Mismatch, ...]:
    """Every reason why KV laid out as ``source`` cannot be read into ``destination``; empty when it can.

    Both must describe the same model and hold all of it, each data-parallel rank by itself. How many ranks share it,
    how it lies in memory and how many tokens a block has may differ. Both layouts are valid.
    """
    return tuple(_differences(source, destination))


def _differences(source: WorkerLayout, destination: WorkerLayout) -> Iterator[Mismatch]:
    yield from _compare("model", source.model, destination.model)
    ours, theirs = ({group.name: group for group in layout.groups} for layout in (source, destination))
    yield from _compare("groups", sorted(ours), sorted(theirs))
    for name, group in ours.items():
        if name in theirs:
            yield from _group_differences(group, theirs[name])
            yield from _too_scattered(group, theirs[name], source, destination)
    for field, missing in _gaps(source):
        yield Mismatch(field, missing, "every layer and head")
    for field, missing in _gaps(destination):
        yield Mismatch(field, "every layer and head", missing)


@lru_cache(maxsize=_LAYOUTS_KEPT_MAX)
def _gaps(layout: WorkerLayout) -> tuple[tuple[str, str], ...]:
    """What a worker does not hold of its own model, data-parallel rank by data-parallel rank: field, and in words.

    Kept, since a router asks for the verdicts of every worker with every other.
    """
    found = []
    for group in layout.groups:
        for shard in range(layout.data_parallel_size):
            missing = _missing(group, layout.ranks_of(shard))
            if missing:
                found.append((_ranks_field(group, layout, shard), f"no rank with {missing}"))
    return tuple(found)


def _group_differences(source: LayerGroup, destination: LayerGroup) -> Iterator[Mismatch]:
    where = f"groups[{source.name}]"
    for name in ("element_type", "kv_factor", "total_kv_heads", "head_dim", "layers", "per_sequence", "scales_of"):
        yield from _compare(f"{where}.{name}", getattr(source, name), getattr(destination, name))
    kept, needed = source.window_tokens, destination.window_tokens
    if kept and not 0 < needed <= kept:
        # A source that keeps more than the destination needs is welcome.
        yield Mismatch(f"{where}.window_tokens", str(kept), str(needed))


def _too_scattered(
    group: LayerGroup, wanted: LayerGroup, source: WorkerLayout, destination: WorkerLayout
) -> Iterator[Mismatch]:
    """Refuse a pair for which one block would be too many copies."""
    placements = [
        [p for rank in layout.ranks if (p := rank.placement(group.name)) is not None]
        for layout in (source, destination)
    ]
    element = group.element_type.size_bytes
    dense = all(p.strides.dim == element for side in placements for p in side)
    tokens = min(group.tokens_per_block, wanted.tokens_per_block)
    row_bytes = group.head_dim * element if dense else element
    rows = max((block_bytes(wanted, p) for p in placements[1]), default=0)
    rows = rows // wanted.tokens_per_block * tokens // row_bytes
    if rows > ROWS_MAX:
        strides = [str(tuple(side[0].strides)) for side in placements]
        yield Mismatch(f"groups[{group.name}].strides", strides[0], f"{strides[1]}: {rows} copies for one block")


def _missing(group: LayerGroup, ranks: tuple[RankLayout, ...]) -> str:
    """What none of the ranks holds, in words; empty if nothing is missing."""
    missing: Cells = ~covered_by(group, ranks)
    if not missing.any():
        return ""
    layers = np.flatnonzero(missing.any(axis=1))
    heads = np.flatnonzero(missing[layers[0]])
    named = _listed([group.layers[layer] for layer in layers[:_LISTED_MAX]], layers.size)
    return f"layer {named}, head {_listed(heads[:_LISTED_MAX].tolist(), heads.size)}"


def _listed(values: list[int], count: int) -> str:
    return ", ".join(map(str, values)) + (f" and {count - len(values)} more" if count > len(values) else "")


def _ranks_field(group: LayerGroup, layout: WorkerLayout, shard: int) -> str:
    if layout.data_parallel_size == 1:
        return f"groups[{group.name}].ranks"
    return f"groups[{group.name}].ranks[data_parallel_rank={shard}]"


def _compare(field: str, source: object, destination: object) -> Iterator[Mismatch]:
    if source != destination:
        yield Mismatch(field, cut(str(source)), cut(str(destination)))
