"""Cuts a plan into batches of bounded size. Pure."""

import numpy as np

from kvferry.core.planning.copies import CopyPlan


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
