"""What a probe copies: pieces of the pattern of a peer into this data plane's scratch, in another order. Pure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.core.planning.copies import CopyPlan, Offsets, StridedCopy
from kvferry_dataplane.attestation.pattern import PROBE_BYTES

LARGE_PIECE_BYTES = 1 << 20
SMALL_PIECE_BYTES = 4 << 10
LATENCY_BYTES = 64
ROUNDS = 3
"""Each read is done so often, and the quickest counts: others may have been disturbed."""
PROBE_SECONDS_MAX = 1.0
"""A read that takes longer has failed: its source does not answer."""
FIRST_WITHIN_SECONDS = 4.0
"""So long after it was told of a peer the transport is probed: the source makes progress for new readers a second
longer. What is asked of a source that rests would lie unread until it has other readers."""
AGAIN_WITHIN_SECONDS = 0.5
"""And so long after a read of it has ended: the source makes progress half a second longer."""


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """Pieces of one size; ``order`` is the place in the scratch that each piece gets."""

    piece_bytes: int
    order: Offsets

    @property
    def total_bytes(self) -> int:
        """Bytes of all pieces."""
        return self.piece_bytes * int(self.order.size)

    def copies(self, source: int, destination: int) -> CopyPlan:
        """As runs; ``source`` and ``destination`` are the offsets of the pattern and of the scratch."""
        firsts = np.arange(self.order.size, dtype=np.int64) * self.piece_bytes
        lengths = np.full(self.order.size, self.piece_bytes, dtype=np.int64)
        return CopyPlan(source + firsts, destination + self.order * self.piece_bytes, lengths)

    def region(self, source: int, destination: int) -> StridedCopy:
        """The same copies as a region."""
        plan = self.copies(source, destination)
        return StridedCopy(plan.source_offsets, plan.destination_offsets, (), self.piece_bytes)

    def arrived(self, scratch: npt.NDArray[np.uint8], pattern: npt.NDArray[np.uint8]) -> bool:
        """Whether the scratch holds the pieces of the pattern."""
        rows = scratch[: self.total_bytes].reshape(-1, self.piece_bytes)
        return bool((rows[self.order] == pattern[: self.total_bytes].reshape(rows.shape)).all())


def probe_plan(piece_bytes: int, total_bytes: int = PROBE_BYTES) -> ProbePlan:
    """So many bytes in pieces, which nobody can join: the scratch gets them in the opposite order."""
    count = total_bytes // piece_bytes
    return ProbePlan(piece_bytes, np.arange(count, dtype=np.int64)[::-1])


LATENCY = probe_plan(LATENCY_BYTES, LATENCY_BYTES)
LARGE = probe_plan(LARGE_PIECE_BYTES)
SMALL = probe_plan(SMALL_PIECE_BYTES)
