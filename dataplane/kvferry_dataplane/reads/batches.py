"""What is asked of an agent at a time: a plan is cut into batches of bounded size, or taken whole. Pure."""

from dataclasses import dataclass, replace

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


def cut_regions(regions: Regions, batch_bytes_max: int) -> list[Regions]:
    """The same copies in batches of about so many bytes, none of more unless what one base names is."""
    if 0 < regions.total_bytes <= batch_bytes_max:
        return [regions]
    batches: list[Regions] = []
    batch: list[StridedCopy] = []
    left = batch_bytes_max
    for copy in regions.copies:
        base_count = int(copy.source_bases.size)
        base_bytes = copy.total_bytes // max(base_count, 1)
        start = 0
        while start < base_count:
            if left < base_bytes and batch:
                batches.append(Regions(tuple(batch)))
                batch, left = [], batch_bytes_max
            taken = min(max(left // max(base_bytes, 1), 1), base_count - start)
            batch.append(_slice(copy, start, start + taken))
            left -= taken * base_bytes
            start += taken
    if batch:
        batches.append(Regions(tuple(batch)))
    return batches


def _slice(copy: StridedCopy, start: int, stop: int) -> StridedCopy:
    if (start, stop) == (0, copy.source_bases.size):
        return copy
    return replace(
        copy, source_bases=copy.source_bases[start:stop], destination_bases=copy.destination_bases[start:stop]
    )
