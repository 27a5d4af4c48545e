"""Who holds which cells, a cell being one KV head of one layer, and who reads each cell from whom."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from kvferry.core.layouts import GroupPlacement, LayerGroup, RankLayout, WorkerLayout

Cells = npt.NDArray[np.bool_]
"""``[layer, head]`` of a layer group, layers by their position in the group."""
Ranks = npt.NDArray[np.int64]
"""``[layer, head]``: a rank for each cell, -1 for none."""


def cells_of(group: LayerGroup, placement: GroupPlacement | None) -> Cells:
    """The cells that a placement holds."""
    held = np.zeros((len(group.layers), group.total_kv_heads), dtype=np.bool_)
    if placement is not None:
        held[np.ix_(positions(group.layers, placement.layers), np.asarray(placement.heads))] = True
    return held


def covered_by(group: LayerGroup, ranks: Iterable[RankLayout]) -> Cells:
    """The cells that at least one of the ranks holds."""
    covered = np.zeros((len(group.layers), group.total_kv_heads), dtype=np.bool_)
    for layers, heads in dict.fromkeys(_held(group, ranks)):
        covered[np.ix_(positions(group.layers, layers), np.asarray(heads))] = True
    return covered


def sources_of(
    group: LayerGroup, sources: Sequence[RankLayout], destination: WorkerLayout, rank: int, shift: int
) -> Ranks:
    """For each cell that a destination rank holds, the one source rank to read it from.

    Of several sources that hold a cell, readers take turns by their position among those that want the cell; fewer
    readers than sources are spread out over them. ``shift`` moves them all on, so that workers need not agree on whom
    to ask first.
    """
    wanted = cells_of(group, destination.ranks[rank].placement(group.name))
    readers, earlier, holders = (np.zeros(wanted.shape, dtype=np.int64) for _ in range(3))
    for reader in destination.ranks:
        cells = cells_of(group, reader.placement(group.name))
        readers += cells
        if reader.rank < rank:
            earlier += cells
    held = [(source.rank, cells_of(group, source.placement(group.name))) for source in sources]
    for _, cells in held:
        holders += cells
    holders_or_one, readers_or_one = np.maximum(holders, 1), np.maximum(readers, 1)
    turn = np.where(readers >= holders, earlier, earlier * holders // readers_or_one)
    turn = (turn + shift) % holders_or_one
    chosen = np.full(wanted.shape, -1, dtype=np.int64)
    passed = np.zeros(wanted.shape, dtype=np.int64)
    for number, cells in held:
        chosen[cells & wanted & (passed == turn)] = number
        passed += cells
    return chosen


def positions(among: Sequence[int], listed: Sequence[int]) -> Ranks:
    """Where each of ``listed`` is in ``among``; both ascend."""
    return np.searchsorted(np.asarray(among, dtype=np.int64), np.asarray(listed, dtype=np.int64))


def _held(group: LayerGroup, ranks: Iterable[RankLayout]) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
    for rank in ranks:
        placement = rank.placement(group.name)
        if placement is not None:
            yield placement.layers, placement.heads
