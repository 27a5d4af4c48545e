"""Where probes read to, behind this data plane's own pool."""

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import TransportFailed
from kvferry_dataplane.attestation.pattern import PROBE_BYTES, pattern_of
from kvferry_dataplane.attestation.plans import ProbePlan
from kvferry_dataplane.pool import Pool
from kvferry_dataplane.transports.memory import Region

_POISON = bytes(PROBE_BYTES)


class Scratch:
    """The tail of a pool. One probe at a time uses it."""

    def __init__(self, pool: Pool, boot_id: bytes) -> None:
        """Write this data plane's own pattern, for its peers."""
        self._pool = pool
        pool.write_tail(0, pattern_of(boot_id).tobytes())

    @property
    def pool_offset(self) -> int:
        """Where it begins, counted from the pool's beginning."""
        return self._pool.region.size_bytes + PROBE_BYTES

    @property
    def region(self) -> Region:
        """All of the pool's memory, in which it lies."""
        return self._pool.memory

    def make_current(self) -> None:
        """Prepare the calling thread to touch it."""
        self._pool.make_current()

    def poison(self) -> None:
        """Overwrite what an earlier probe has brought."""
        self._pool.write_tail(PROBE_BYTES, _POISON)

    def require(self, plan: ProbePlan, pattern: npt.NDArray[np.uint8]) -> None:
        """See to it that a peer's pattern has arrived.

        Raises:
            TransportFailed: other bytes have.
        """
        found = np.frombuffer(self._pool.read_tail(PROBE_BYTES, plan.total_bytes), dtype=np.uint8)
        if not plan.arrived(found, pattern):
            raise TransportFailed(f"{plan.total_bytes} bytes were read in a probe, and are not those of the source")
