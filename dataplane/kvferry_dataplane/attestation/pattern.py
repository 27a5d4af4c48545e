"""The bytes that probes read: they lie right behind the pool, in the same memory, and every reader can work them out.

Behind a pool come ``PROBE_BYTES`` of a pattern, which peers read, and as many of scratch, into which this data plane
reads theirs. What lies in the same memory is reached on the same ways, is mapped with it, and registered with it.
"""

import numpy as np
import numpy.typing as npt

PROBE_BYTES = 2 << 20
TAIL_BYTES = 2 * PROBE_BYTES
"""What a pool's memory is larger than the pool. Whole huge pages, so that pools keep theirs."""


def pattern_of(boot_id: bytes) -> npt.NDArray[np.uint8]:
    """The pattern of one life of a data plane, ``PROBE_BYTES`` long: a stream of PCG64, seeded with its boot id."""
    words = np.random.PCG64(int.from_bytes(boot_id, "little")).random_raw(PROBE_BYTES // 8)
    return words.astype("<u8").view(np.uint8)
