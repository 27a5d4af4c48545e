"""Random copies between two windows in which no two runs share a byte of the destination."""

from math import prod

import numpy as np

from kvferry.core.planning.copies import Axis, CopyPlan, StridedCopy
from kvferry.device.copying import Copies


def random_strided(rng: np.random.Generator, space: int, unit: int) -> StridedCopy:
    """Region copies of random shape, with strides of either sign, that fit into ``space`` bytes of both windows."""
    run_bytes = unit * int(rng.choice([1, 2, 3, 16, 64, 257]))
    lengths = [int(length) for length in rng.integers(1, 5, rng.integers(0, 5))]
    while lengths and prod(lengths) * run_bytes > space // 8:
        lengths.pop()
    gap = unit * int(rng.integers(0, 3))
    axes: list[Axis] = []
    extent = run_bytes + gap
    starts = [0, 0]
    for length in lengths:
        strides = []
        for side in (0, 1):
            sign = 1 if rng.random() < 0.7 else -1
            strides.append(sign * extent)
            starts[side] += (length - 1) * extent if sign < 0 else 0
        axes.append(Axis(length, *strides))
        extent *= length
    rng.shuffle(axes)
    room = space // extent
    count = int(rng.integers(1, min(room, 40) + 1))
    bases = [np.sort(rng.permutation(room)[:count]) * extent + start for start in starts]
    rng.shuffle(bases[0])
    return StridedCopy(bases[0].astype(np.int64), bases[1].astype(np.int64), tuple(axes), run_bytes)


def random_flat(rng: np.random.Generator, space: int, unit: int, *, longest: int = 3000) -> CopyPlan:
    """Runs of random lengths at random places."""
    lengths = unit * rng.integers(0, max(longest // unit, 2), 200)
    lengths = lengths[np.cumsum(lengths + unit) <= space]
    starts = np.cumsum(lengths + unit) - lengths - unit
    order = rng.permutation(lengths.size)
    moved = np.empty_like(starts)
    moved[order] = np.cumsum((lengths + unit)[order]) - (lengths + unit)[order]
    return CopyPlan(starts.astype(np.int64), moved.astype(np.int64), lengths.astype(np.int64))


def random_copies(rng: np.random.Generator, space: int) -> tuple[list[Copies], int]:
    """Some copies, each in a part of its own of ``2 * space`` bytes; and the unit that all are multiples of."""
    unit = int(rng.choice([1, 2, 4, 8, 16, 48]))
    copies: list[Copies] = []
    for part in range(int(rng.integers(1, 5))):
        at = part * 2 * space
        if rng.random() < 0.6:
            strided = random_strided(rng, space, unit)
            copies.append(
                StridedCopy(strided.source_bases + at, strided.destination_bases + at, strided.axes, strided.run_bytes)
            )
        else:
            flat = random_flat(rng, space, unit, longest=int(rng.choice([64, 3000, 50000])))
            copies.append(CopyPlan(flat.source_offsets + at, flat.destination_offsets + at, flat.lengths))
    return copies, unit
