"""Sums regions of a pool, wherever it lies."""

from collections.abc import Callable

from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion
from kvferry.device.copying import Window
from kvferry.device.native import CancelFlag, digest_host
from kvferry_dataplane.checksums.threads import WORKERS
from kvferry_dataplane.pool import Pool


def digest_of(pool: Pool, thread_count: int) -> Callable[[DigestRegion, CancelFlag], Words]:
    """What sums a pool; all callers together use about ``thread_count`` threads."""
    window = Window(pool.region.address, pool.region.size_bytes)
    each = max(thread_count // WORKERS, 1)
    return lambda region, flag: digest_host(window, region, each, flag)
