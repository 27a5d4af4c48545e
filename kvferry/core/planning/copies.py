"""What a plan is made of: copies of byte runs, flat or as strided regions."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Runs of bytes to copy; three arrays of one length, offsets in the two pools. No two runs share a byte."""

    source_offsets: Offsets
    destination_offsets: Offsets
    lengths: Offsets

    @property
    def piece_count(self) -> int:
        """Runs."""
        return int(self.lengths.size)

    @property
    def total_bytes(self) -> int:
        """Bytes of all runs."""
        return int(self.lengths.sum())


class Axis(NamedTuple):
    """Equal steps through both pools: so many items, at these byte distances."""

    length: int
    source_stride: int
    destination_stride: int


@dataclass(frozen=True, slots=True)
class StridedCopy:
    """Region copies of one shape: from each pair of bases, for all indices of ``axes``, a run of ``run_bytes``."""

    source_bases: Offsets
    destination_bases: Offsets
    axes: tuple[Axis, ...]
    """Outermost first."""
    run_bytes: int

    @property
    def run_count(self) -> int:
        """Runs of all regions."""
        runs = int(self.source_bases.size)
        for axis in self.axes:
            runs *= axis.length
        return runs

    @property
    def total_bytes(self) -> int:
        """Bytes of all regions."""
        return self.run_count * self.run_bytes


NOTHING = CopyPlan(*(np.empty(0, dtype=np.int64) for _ in range(3)))
"""The plan that copies nothing."""


def steps(axes: tuple[Axis, ...]) -> tuple[Offsets, Offsets]:
    """Offsets of every index of ``axes`` in both pools, the last axis fastest."""
    source = destination = np.zeros(1, dtype=np.int64)
    for axis in reversed(axes):
        indices = np.arange(axis.length, dtype=np.int64)[:, None]
        source = (indices * axis.source_stride + source).ravel()
        destination = (indices * axis.destination_stride + destination).ravel()
    return source, destination


def joined(plan: CopyPlan, *, by_destination: bool) -> CopyPlan:
    """Sort and join every two runs that touch in both pools."""
    if plan.piece_count < 2:
        return plan
    key = plan.destination_offsets if by_destination else plan.source_offsets
    if not bool((key[1:] > key[:-1]).all()):
        order = np.argsort(key)
        plan = CopyPlan(plan.source_offsets[order], plan.destination_offsets[order], plan.lengths[order])
    touching = plan.source_offsets[:-1] + plan.lengths[:-1] == plan.source_offsets[1:]
    touching &= plan.destination_offsets[:-1] + plan.lengths[:-1] == plan.destination_offsets[1:]
    if not touching.any():
        return plan
    firsts = np.flatnonzero(np.concatenate(([True], ~touching)))
    lengths = np.add.reduceat(plan.lengths, firsts)
    return CopyPlan(plan.source_offsets[firsts], plan.destination_offsets[firsts], lengths)


def concatenated(plans: list[CopyPlan]) -> CopyPlan:
    """All runs of several plans."""
    if len(plans) == 1:
        return plans[0]
    if not plans:
        return NOTHING
    return CopyPlan(
        np.concatenate([plan.source_offsets for plan in plans]),
        np.concatenate([plan.destination_offsets for plan in plans]),
        np.concatenate([plan.lengths for plan in plans]),
    )
