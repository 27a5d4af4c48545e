"""Maps pools for reading."""

import threading
from collections.abc import Callable

from kvferry.device.copying import Window
from kvferry.device.cuda import CudaDevice, open_device_by_uuid
from kvferry.device.cuda_memory import register_host, unregister_host
from kvferry.device.huge_pages import address_of
from kvferry.device.memfd import map_shared_memory
from kvferry_dataplane.copiers import Copiers
from kvferry_dataplane.pool import Pool
from kvferry_dataplane.sharing.source import MappedPool


class PoolMapper:
    """The :class:`~kvferry_dataplane.sharing.source.Mapper` of a pool.

    Between host memories threads copy. Where either pool lies on a device, that device does: the other is mapped there
    too, by CUDA IPC from its peers and pinned where it lies from the host.
    """

    def __init__(self, pool: Pool, copiers: Copiers) -> None:
        self._pool = pool
        self._own = Window(pool.memory.address, pool.memory.size_bytes)
        self._copiers = copiers
        self._lock = threading.Lock()
        self._own_on_device: dict[int, Window] = {}
        self._undo: list[Callable[[], None]] = []

    def map_host(self, descriptor: int, size_bytes: int) -> MappedPool:
        """Map host memory, already checked."""
        mapping = map_shared_memory(descriptor, size_bytes, writable=False)
        address = address_of(mapping)
        device = self._pool.cuda_device
        copier = self._copiers.on(device)
        if device is None:
            return MappedPool(Window(address, size_bytes), self._own, copier, "memory", mapping.close)
        on_device = register_host(device, address, size_bytes, read_only=True)

        def unmap() -> None:
            unregister_host(device, address)
            mapping.close()

        return MappedPool(Window(on_device, size_bytes), self._own, copier, "cuda", unmap)

    def map_cuda(self, handle: bytes, device_uuid: bytes, size_bytes: int) -> MappedPool:
        """Map device memory, of this device, a peer, or for a pool in host memory any that is seen here."""
        device = self._pool.cuda_device or open_device_by_uuid(device_uuid)
        copier, own = self._copiers.on(device), self._own_window_on(device)
        address = device.open_handle(handle)
        return MappedPool(Window(address, size_bytes), own, copier, "cuda", lambda: device.close_handle(address))

    def close(self) -> None:
        """End every copy, of all paths, and release everything but the mappings."""
        self._copiers.close()
        with self._lock:
            for undo in self._undo:
                undo()
            self._undo.clear()

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
