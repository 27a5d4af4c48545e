"""Maps pools for reading, and makes the copiers that read them when they are first needed."""

import threading
from collections.abc import Callable

import numpy as np

from kvferry.device.copying import Copier, Window
from kvferry.device.cuda import CudaDevice, open_device_by_uuid
from kvferry.device.cuda_copy import CudaCopier
from kvferry.device.cuda_memory import register_host, unregister_host
from kvferry.device.memfd import map_shared_memory
from kvferry.device.native import HostCopier
from kvferry_dataplane.pool import Pool
from kvferry_dataplane.sharing.source import MappedPool


class PoolMapper:
    """The :class:`~kvferry_dataplane.sharing.source.Mapper` of a pool. No copier is made before one is needed.

    Between host memories threads copy. Where either pool lies on a device, that device does: the other is mapped there
    too, by CUDA IPC from its peers and pinned where it lies from the host.
    """

    def __init__(self, pool: Pool, thread_count: int, sm_count_max: int | None, wake_descriptor: int) -> None:
        self._pool = pool
        self._own = Window(pool.region.address, pool.region.size_bytes)
        self._thread_count = thread_count
        self._sm_count_max = sm_count_max
        self._wake_descriptor = wake_descriptor
        self._lock = threading.Lock()
        self._host_copier: Copier | None = None
        self._cuda_copiers: dict[int, Copier] = {}
        self._own_on_device: dict[int, Window] = {}
        self._undo: list[Callable[[], None]] = []

    def map_host(self, descriptor: int, size_bytes: int) -> MappedPool:
        """Map host memory, already checked."""
        mapping = map_shared_memory(descriptor, size_bytes, writable=False)
        address = int(np.frombuffer(mapping, dtype=np.uint8).ctypes.data)
        device = self._pool.cuda_device
        if device is None:
            return MappedPool(Window(address, size_bytes), self._own, self._copier(), "memory", mapping.close)
        copier = self._copier_on(device)
        on_device = register_host(device, address, size_bytes, read_only=True)

        def unmap() -> None:
            unregister_host(device, address)
            mapping.close()

        return MappedPool(Window(on_device, size_bytes), self._own, copier, "cuda", unmap)

    def map_cuda(self, handle: bytes, device_uuid: bytes, size_bytes: int) -> MappedPool:
        """Map device memory, of this device, a peer, or for a pool in host memory any that is seen here."""
        device = self._pool.cuda_device or open_device_by_uuid(device_uuid)
        copier, own = self._copier_on(device), self._own_window_on(device)
        address = device.open_handle(handle)
        return MappedPool(Window(address, size_bytes), own, copier, "cuda", lambda: device.close_handle(address))

    def close(self) -> None:
        """End every copy and release everything but the mappings."""
        with self._lock:
            copiers = [*self._cuda_copiers.values(), *([self._host_copier] if self._host_copier is not None else [])]
            for copier in copiers:
                copier.close()
            for undo in self._undo:
                undo()
            self._undo.clear()

    def _copier(self) -> Copier:
        with self._lock:
            if self._host_copier is None:
                self._host_copier = HostCopier(self._thread_count, self._wake_descriptor)
            return self._host_copier

    def _copier_on(self, device: CudaDevice) -> Copier:
        with self._lock:
            if device.index not in self._cuda_copiers:
                self._cuda_copiers[device.index] = CudaCopier(device, sm_count_max=self._sm_count_max)
            return self._cuda_copiers[device.index]

    def _own_window_on(self, device: CudaDevice) -> Window:
        if self._pool.cuda_device is not None:
            return self._own
        with self._lock:
            if device.index not in self._own_on_device:
                address, size_bytes = self._own.address, self._own.size_bytes
                on_device = register_host(device, address, size_bytes, read_only=False)
                self._own_on_device[device.index] = Window(on_device, size_bytes)
                self._undo.append(lambda: unregister_host(device, address))
            return self._own_on_device[device.index]
