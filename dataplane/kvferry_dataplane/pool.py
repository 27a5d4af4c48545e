"""The memory that a data plane owns."""

from dataclasses import dataclass, replace
from typing import Protocol

from kvferry.core.errors import ConfigInvalid
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.device import cuda
from kvferry.device.memfd import SharedMemory, create_shared_memory, reopen_read_only
from kvferry_dataplane.attestation.pattern import TAIL_BYTES
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.transports.memory import Region


@dataclass(frozen=True, slots=True)
class Offer:
    """What another process gets to map the pool."""

    message: bytes
    descriptors: tuple[int, ...]


class Pool(Protocol):
    """A pool of KV memory."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""
        ...

    @property
    def region(self) -> Region:
        """Where it lies in this process."""
        ...

    @property
    def memory(self) -> Region:
        """All of its memory: the pool, then ``TAIL_BYTES`` for probes, a pattern and scratch."""
        ...

    def write_tail(self, offset: int, data: bytes) -> None:
        """Write to what is behind the pool; ``offset`` counts from its end. For the thread that is prepared."""
        ...

    def read_tail(self, offset: int, size_bytes: int) -> bytes:
        """Read from there."""
        ...

    @property
    def huge_page_bytes(self) -> int:
        """Bytes that lie on huge pages."""
        ...

    @property
    def huge_page_refusal(self) -> str:
        """Why host memory has no huge pages; empty where it has them or they do not matter."""
        ...

    def make_current(self) -> None:
        """Prepare the calling thread to touch the memory."""
        ...

    @property
    def cuda_device(self) -> cuda.CudaDevice | None:
        """The device that it lies on; None for host memory."""
        ...

    def offer(self, boot_id: bytes) -> Offer:
        """What an engine gets to map it."""
        ...

    def share(self, boot_id: bytes, table: SharedMemory) -> Offer:
        """What a data plane of the same host gets to map it and the lease table for reading.

        The caller closes the descriptors.
        """
        ...

    def close(self) -> None:
        """Give the memory back. Others that mapped it keep it until they unmap it."""
        ...


class HostPool:
    """Shared host memory."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = create_shared_memory("kvferry-pool", size_bytes, tail_bytes=TAIL_BYTES)
        self._region = Region("DRAM", self._memory.address, size_bytes)

    @property
    def device(self) -> str:
        """`cpu`."""
        return "cpu"

    @property
    def region(self) -> Region:
        """Where it lies in this process."""
        return self._region

    @property
    def memory(self) -> Region:
        """With the tail."""
        return with_tail(self._region)

    def write_tail(self, offset: int, data: bytes) -> None:
        """Write behind the pool."""
        start = self._region.size_bytes + offset
        self._memory.mapping[start : start + len(data)] = data

    def read_tail(self, offset: int, size_bytes: int) -> bytes:
        """Read behind the pool."""
        start = self._region.size_bytes + offset
        return self._memory.mapping[start : start + size_bytes]

    @property
    def huge_page_bytes(self) -> int:
        """Bytes that lie on huge pages: all or none."""
        return self._memory.huge_page_bytes

    @property
    def huge_page_refusal(self) -> str:
        """Why there are no huge pages."""
        return self._memory.huge_page_refusal

    def make_current(self) -> None:
        """Host memory needs no preparation."""

    @property
    def cuda_device(self) -> None:
        """None."""
        return

    def offer(self, boot_id: bytes) -> Offer:
        """The descriptor, for reading and writing."""
        message = pb.PoolOffer(device=self.device, pool_bytes=self._region.size_bytes, boot_id=boot_id)
        return Offer(message.SerializeToString(), (self._memory.descriptor,))

    def share(self, boot_id: bytes, table: SharedMemory) -> Offer:
        """Descriptors for reading only."""
        message = pb.ShareOffer(
            device=self.device,
            pool_bytes=self._region.size_bytes,
            boot_id=boot_id,
            lease_slot_count=table.size_bytes // WORD_BYTES,
        )
        descriptors = reopen_read_only(table.descriptor), reopen_read_only(self._memory.descriptor)
        return Offer(message.SerializeToString(), descriptors)

    def close(self) -> None:
        """Unmap and close."""
        self._memory.close()


class CudaPool:
    """One device allocation whose IPC handle can be opened."""

    def __init__(self, device: cuda.CudaDevice, size_bytes: int) -> None:
        self._device = device
        address = device.allocate(size_bytes, tail_bytes=TAIL_BYTES)
        self._region = Region("VRAM", address, size_bytes, device.index)
        self._handle = device.export_handle(address)
        # Memory of a former process must not be offered to this one's engines.
        device.fill(address, 0, size_bytes + TAIL_BYTES)

    @property
    def device(self) -> str:
        """`cuda:N`."""
        return f"cuda:{self._device.index}"

    @property
    def region(self) -> Region:
        """Where it lies on the device."""
        return self._region

    @property
    def memory(self) -> Region:
        """With the tail."""
        return with_tail(self._region)

    def write_tail(self, offset: int, data: bytes) -> None:
        """Write behind the pool."""
        self._device.write(self._region.address + self._region.size_bytes + offset, data)

    def read_tail(self, offset: int, size_bytes: int) -> bytes:
        """Read behind the pool."""
        return self._device.read(self._region.address + self._region.size_bytes + offset, size_bytes)

    @property
    def huge_page_bytes(self) -> int:
        """Device memory has none."""
        return 0

    @property
    def huge_page_refusal(self) -> str:
        """Nothing was asked for."""
        return ""

    def make_current(self) -> None:
        """Bind the device's context to the calling thread."""
        self._device.make_current()

    @property
    def cuda_device(self) -> cuda.CudaDevice:
        """The device that it lies on."""
        return self._device

    def offer(self, boot_id: bytes) -> Offer:
        """The IPC handle and the device's UUID."""
        message = pb.PoolOffer(
            device=self.device,
            pool_bytes=self._region.size_bytes,
            boot_id=boot_id,
            cuda_ipc_handle=self._handle,
            cuda_device_uuid=self._device.uuid,
        )
        return Offer(message.SerializeToString(), ())

    def share(self, boot_id: bytes, table: SharedMemory) -> Offer:
        """The table's descriptor, the IPC handle and the device's UUID; CUDA has no handles for reading only."""
        message = pb.ShareOffer(
            device=self.device,
            pool_bytes=self._region.size_bytes,
            boot_id=boot_id,
            lease_slot_count=table.size_bytes // WORD_BYTES,
            cuda_ipc_handle=self._handle,
            cuda_device_uuid=self._device.uuid,
        )
        return Offer(message.SerializeToString(), (reopen_read_only(table.descriptor),))

    def close(self) -> None:
        """Free the allocation."""
        self._device.free(self._region.address)


def with_tail(pool: Region) -> Region:
    """All memory of a pool, with what is behind it."""
    return replace(pool, size_bytes=pool.size_bytes + TAIL_BYTES)


def open_pool(device: str, size_bytes: int) -> Pool:
    """Make the pool of a data plane; ``device`` is `cpu` or `cuda:N`.

    Raises:
        ConfigInvalid: no such device, or not a size.
        PoolTooLarge: more than is available.
    """
    if device == "cpu":
        return HostPool(size_bytes)
    if size_bytes <= 0:
        raise ConfigInvalid.of_field("pool_bytes", size_bytes, "must be positive")
    return CudaPool(cuda.open_device(int(device.removeprefix("cuda:"))), size_bytes)
