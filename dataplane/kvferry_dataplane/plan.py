"""Pair plans of this rank, kept while they are in use: what a pair of layouts needs is worked out once."""

import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvferry.core.layouts import RankLayout, WorkerLayout
from kvferry.core.planning.planner import PairPlan

PAIRS_KEPT_MAX = 128


@dataclass(frozen=True, slots=True)
class Side:
    """One rank of a worker and the size of its pool."""

    layout: WorkerLayout
    rank: int
    pool_bytes: int
    block_counts: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """Blocks of each layer group of the worker: ids are the same on every rank that takes part in a request."""

    def __post_init__(self) -> None:
        shard = self.holds.data_parallel_rank
        counts = {group.name: self.layout.block_count(group.name, shard) for group in self.layout.groups}
        object.__setattr__(self, "block_counts", counts)

    @property
    def holds(self) -> RankLayout:
        """What the rank holds."""
        return self.layout.ranks[self.rank]


class PairPlans:
    """The pair plans of one destination rank, by source layout; the least recently used are forgotten."""

    def __init__(self, destination: Side, worker: str) -> None:
        self._destination = destination
        # Workers differ in which of several equal source ranks their first reader asks.
        self._replica_shift = zlib.crc32(worker.encode())
        self._kept: OrderedDict[tuple[int, int], PairPlan] = OrderedDict()

    def get(self, source: Side) -> PairPlan:
        """The plan for the source worker that a rank belongs to.

        Raises:
            LayoutMismatch: the workers cannot be paired.
        """
        shard = source.holds.data_parallel_rank
        key = (id(source.layout), shard)
        kept = self._kept.get(key)
        if kept is None:
            kept = PairPlan(
                source.layout,
                self._destination.layout,
                self._destination.rank,
                source_data_parallel_rank=shard,
                replica_shift=self._replica_shift,
            )
            # The plan holds the layout, so that its id stays its own for as long.
            self._kept[key] = kept
            if len(self._kept) > PAIRS_KEPT_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return kept
