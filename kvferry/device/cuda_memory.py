"""Host memory that a CUDA device reaches: pinned buffers, and memory of others registered in place."""

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.device.cuda import CudaDevice, call, constant

_DEVICE_MAP = ("CU_MEMHOSTREGISTER_PORTABLE", "CU_MEMHOSTREGISTER_DEVICEMAP")


@dataclass(frozen=True, slots=True)
class PinnedMemory:
    """Page-locked host memory that the device reaches by itself."""

    address: int
    device_address: int
    size_bytes: int

    def view(self) -> npt.NDArray[np.uint8]:
        """The memory as an array, which must not outlive it."""
        return np.frombuffer(memoryview((ctypes.c_uint8 * self.size_bytes).from_address(self.address)), dtype=np.uint8)


def allocate_pinned(device: CudaDevice, size_bytes: int) -> PinnedMemory:
    """Allocate pinned memory.

    Raises:
        TransportFailed: the system grants no so much.
    """
    device.make_current()
    flags = int(constant("CU_MEMHOSTALLOC_PORTABLE")) | int(constant("CU_MEMHOSTALLOC_DEVICEMAP"))
    address = int(call("cuMemHostAlloc", size_bytes, flags))
    return PinnedMemory(address, int(call("cuMemHostGetDevicePointer", address, 0)), size_bytes)


def free_pinned(device: CudaDevice, memory: PinnedMemory) -> None:
    """Free what :func:`allocate_pinned` gave."""
    device.make_current()
    call("cuMemFreeHost", memory.address)


def register_host(device: CudaDevice, address: int, size_bytes: int, *, read_only: bool) -> int:
    """Pin memory that is mapped in this process and return its address for the device.

    ``read_only`` for memory that is mapped without the right to write.

    Raises:
        TransportFailed: the driver refuses; for read-only memory it may lack the ability.
    """
    device.make_current()
    flags = sum(int(constant(name)) for name in _DEVICE_MAP)
    if read_only:
        flags |= int(constant("CU_MEMHOSTREGISTER_READ_ONLY"))
    call("cuMemHostRegister", address, size_bytes, flags)
    return int(call("cuMemHostGetDevicePointer", address, 0))


def unregister_host(device: CudaDevice, address: int) -> None:
    """Undo :func:`register_host`, by the address in this process."""
    device.make_current()
    call("cuMemHostUnregister", address)
