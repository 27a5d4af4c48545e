"""The pairing verdict: whether KV can move from one worker to another, and every reason why not.

It is computed from the two layouts alone, once per pair of incarnations, so that nothing can pass here and then fail
when a request is waiting.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kvferry.core.layouts import GroupPlacement, LayerGroup, WorkerLayout
from kvferry.core.reasons import Reason


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

    Both must hold KV alike: the same model, groups, ranks, layers, heads and order in memory. The number of blocks and
    where in the pool they begin may differ.
    """
    return tuple(_differences(source, destination))


def _differences(source: WorkerLayout, destination: WorkerLayout) -> Iterator[Mismatch]:
    yield from _compare("model", source.model, destination.model)
    names = [g.name for g in source.groups], [g.name for g in destination.groups]
    yield from _compare("groups", sorted(names[0]), sorted(names[1]))
    yield from _compare("ranks", len(source.ranks), len(destination.ranks))
    theirs = {group.name: group for group in destination.groups}
    for group in source.groups:
        if group.name in theirs:
            yield from _group_differences(group, theirs[group.name])
    for ours, other in zip(source.ranks, destination.ranks, strict=False):
        for placement in ours.placements:
            yield from _placement_differences(ours.rank, placement, other.placement(placement.group))


def _group_differences(source: LayerGroup, destination: LayerGroup) -> Iterator[Mismatch]:
    where = f"groups[{source.name}]"
    for name in (
        "element_type",
        "kv_factor",
        "total_kv_heads",
        "head_dim",
        "tokens_per_block",
        "window_tokens",
        "layers",
    ):
        yield from _compare(f"{where}.{name}", getattr(source, name), getattr(destination, name))


def _placement_differences(rank: int, source: GroupPlacement, destination: GroupPlacement | None) -> Iterator[Mismatch]:
    where = f"ranks[{rank}].placements[{source.group}]"
    if destination is None:
        yield Mismatch(where, "present", "absent")
        return
    yield from _compare(f"{where}.layers", source.layers, destination.layers)
    yield from _compare(f"{where}.heads", source.heads, destination.heads)
    if _inner_order(source) != _inner_order(destination):
        yield Mismatch(f"{where}.strides", str(tuple(source.strides)), str(tuple(destination.strides)))


def _inner_order(placement: GroupPlacement) -> tuple[int, int, int]:
    """Strides that say how a token's elements lie: pools of different sizes may put blocks, layers, K and V apart."""
    return placement.strides.head, placement.strides.token, placement.strides.dim


def _compare(field: str, source: object, destination: object) -> Iterator[Mismatch]:
    if source != destination:
        yield Mismatch(field, str(source), str(destination))
