"""How the C allocator of this process keeps memory that was freed."""

import ctypes

KEPT_BYTES_MAX = 128 << 20
"""Freed memory that is kept for the next plan."""
_SMALL_BYTES_MAX = 32 << 20
"""Larger pieces are mapped by themselves; glibc takes no larger threshold."""
# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Have memory that plans are made in used again; returns whether this C library can be told.

    The arrays of a plan of many blocks have about a megabyte each. Left alone, glibc maps every one of them anew and
    gives it back at once, and the page faults take longer than the planning.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _SMALL_BYTES_MAX)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX))
