"""What is asked of an agent at a time: a plan is cut into batches of bounded size, or taken whole. Pure."""

from dataclasses import dataclass

import numpy as np

from kvferry.core.planning.copies import CopyPlan, StridedCopy


@dataclass(frozen=True, slots=True)
class Regions:
    """A whole plan as regions, for copiers that take it at once."""

    copies: tuple[StridedCopy, ...]

    @property
    def piece_count(self) -> int:
        """Runs of all regions."""
        return sum(copy.run_count for copy in self.copies)

    @property
    def total_bytes(self) -> int:
        """Bytes of all regions."""
        return sum(copy.total_bytes for copy in self.copies)


Batch = CopyPlan | Regions


def split_long(plan: CopyPlan, run_bytes_max: int) -> CopyPlan:
    """The same copies with no run longer than ``run_bytes_max``."""
    if not plan.piece_count or int(plan.lengths.max()) <= run_bytes_max:
        return plan
    counts = -(-plan.lengths // run_bytes_max)
    firsts = np.cumsum(counts) - counts
    inside = (np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(firsts, counts)) * run_bytes_max
    return CopyPlan(
        np.repeat(plan.source_offsets, counts) + inside,
        np.repeat(plan.destination_offsets, counts) + inside,
        np.minimum(np.repeat(plan.lengths, counts) - inside, run_bytes_max),
    )


def cut(plan: CopyPlan, batch_bytes_max: int, batch_descriptors_max: int) -> list[CopyPlan]:
    """Batches of at most so many bytes and descriptors, in order; no run may be longer than a batch."""
    ends = np.cumsum(plan.lengths)
    batches, start = [], 0
    while start < plan.piece_count:
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + batch_bytes_max, side="right"))
        stop = min(fitting, start + batch_descriptors_max)
        batches.append(
            CopyPlan(plan.source_offsets[start:stop], plan.destination_offsets[start:stop], plan.lengths[start:stop])
        )
        start = stop
    return batches
