"""Sums regions of a pool, wherever it lies."""

import threading

from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion
from kvferry.device.copying import Window
from kvferry.device.cuda_digest import CudaDigester
from kvferry.device.native import CancelFlag, digest_host
from kvferry_dataplane.checksums.threads import WORKERS
from kvferry_dataplane.pool import Pool


class PoolDigester:
    """Sums one pool. Any thread may ask; on a device the kernel is made when it is first needed."""

    def __init__(self, pool: Pool, thread_count: int, sm_count_max: int | None) -> None:
        """All callers together use about ``thread_count`` threads, or so many multiprocessors; None: all."""
        self._pool = pool
        self._window = Window(pool.region.address, pool.region.size_bytes)
        self._threads = max(thread_count // WORKERS, 1)
        self._sm_count_max = sm_count_max
        self._lock = threading.Lock()
        self._cuda: CudaDigester | None = None

    def digest(self, region: DigestRegion, flag: CancelFlag) -> Words:
        """The sums of a region; ``Cancelled`` once the flag is raised.

        Raises:
            KvferryError: the region leaves the pool; the device or its compiler failed.
        """
        device = self._pool.cuda_device
        if device is None:
            return digest_host(self._window, region, self._threads, flag)
        with self._lock:
            if self._cuda is None:
                self._cuda = CudaDigester(device, sm_count_max=self._sm_count_max)
        return self._cuda.digest(self._window, region, flag)

    def close(self) -> None:
        """Release what is on the device; no digest may be under way."""
        if self._cuda is not None:
            self._cuda.close()
            self._cuda = None
