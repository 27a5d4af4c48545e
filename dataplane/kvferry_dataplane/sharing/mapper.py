"""Maps pools for reading, and makes the copiers that read them when they are first needed."""

import threading
from collections.abc import Callable

import numpy as np

from kvferry.device.copying import Copier, Window
from kvferry.device.memfd import map_shared_memory
from kvferry_dataplane.nixl_agent import Region
from kvferry_dataplane.sharing.source import MappedPool


class Copiers:
    """The copiers of one data plane: none is made before a pool is mapped that needs it."""

    def __init__(self, make_host: Callable[[], Copier]) -> None:
        self._make_host = make_host
        self._host: Copier | None = None
        self._lock = threading.Lock()

    def host(self) -> Copier:
        """The one that copies between host memory.

        Raises:
            KvferryError: it cannot be made.
        """
        with self._lock:
            if self._host is None:
                self._host = self._make_host()
            return self._host

    def close(self) -> None:
        """End every copy and release everything."""
        with self._lock:
            if self._host is not None:
                self._host.close()
                self._host = None


class HostMapper:
    """Maps pools so that they can be copied to a pool in host memory."""

    def __init__(self, pool: Region, copiers: Copiers) -> None:
        self._destination = Window(pool.address, pool.size_bytes)
        self._copiers = copiers

    def map_host(self, descriptor: int, size_bytes: int) -> MappedPool:
        """Map host memory, already checked."""
        copier = self._copiers.host()
        mapping = map_shared_memory(descriptor, size_bytes, writable=False)
        address = int(np.frombuffer(mapping, dtype=np.uint8).ctypes.data)
        return MappedPool(Window(address, size_bytes), self._destination, copier, "memory", mapping.close)
