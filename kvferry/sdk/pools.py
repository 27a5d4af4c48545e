"""Pools that data planes own, mapped into this process: as torch tensors or numpy arrays, without a copy.

A mapping lasts as long as the last tensor or array over it, so that no view can ever point at unmapped memory; losing
or closing a pool ends the handing out of views.
"""

import asyncio
import os
import socket
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from kvferry.core.errors import (
    DataPlaneLost,
    InvalidArgument,
    KvferryError,
    LayoutInvalid,
    NotReady,
    PermissionDenied,
    TransportFailed,
)
from kvferry.core.layouts import ElementType, GroupPlacement, LayerGroup, WorkerLayout, end_bytes, shape_of
from kvferry.dataplane.v1 import dataplane_pb2
from kvferry.device.cuda import CudaBytes, open_device_by_uuid
from kvferry.device.descriptors import receive_offer
from kvferry.device.memfd import map_shared_memory
from kvferry.engine.v1 import engine_pb2
from kvferry.layout.v1 import layout_pb2
from kvferry.sdk.events import EngineEvent, PoolLost, PoolRestored
from kvferry.sdk.records import Record

if TYPE_CHECKING:
    from mmap import mmap

    import numpy as np
    import torch

    Memory = mmap | CudaBytes

ATTACH_S = 5.0
"""Bound on the conversation with a pool socket."""

_TORCH_NAMES = {
    ElementType.FLOAT8_E4M3: "float8_e4m3fn",
    ElementType.FLOAT8_E5M2: "float8_e5m2",
}
"""Where torch's name of an element type differs from its value."""


@dataclass(frozen=True, slots=True)
class PoolInfo(Record):
    """Where a rank's pool is."""

    rank: int
    device: str
    """``cpu`` or ``cuda:N``, N being the data plane's index."""
    pool_bytes: int
    pool_socket: str
    boot_id: bytes = field(repr=False)
    """Identity of this life of the data plane."""


class AttachedPool:
    """One rank's pool, mapped into this process. Made by ``EngineClient.attach``."""

    def __init__(self, info: PoolInfo, layout: WorkerLayout | None, mapped: "MappedPool") -> None:
        self.info = info
        self._layout = layout
        self._mapped: MappedPool | None = mapped
        self._tensor: torch.Tensor | None = None
        self._gone: KvferryError | None = None

    @property
    def rank(self) -> int:
        """Index of the rank."""
        return self.info.rank

    @property
    def pool_bytes(self) -> int:
        """Size of the pool."""
        return self.info.pool_bytes

    @property
    def valid(self) -> bool:
        """Whether views can be had: the data plane lives and the pool is not closed."""
        return self._gone is None

    @property
    def bytes(self) -> "torch.Tensor":
        """The whole pool as a one-dimensional uint8 tensor, on the CPU or on the pool's CUDA device.

        Raises:
            DataPlaneLost: the data plane was lost; attach again once it is back.
            NotReady: the pool was closed.
        """
        import torch  # noqa: PLC0415, slow to import, and not everybody needs it

        mapped = self._live()
        if self._tensor is None:
            if isinstance(mapped.memory, CudaBytes):
                self._tensor = torch.as_tensor(mapped.memory, device=mapped.torch_device)
            else:
                self._tensor = torch.frombuffer(mapped.memory, dtype=torch.uint8)
        return self._tensor

    def kv(self, group: str | None = None) -> "torch.Tensor":
        """This rank's part of a layer group as ``[layer, block, kv, token, head, dim]``, viewed in place.

        ``group`` may be left out where the layout has one.

        Raises:
            InvalidArgument: no layout was declared, or this rank does not hold the group.
            LayoutInvalid: a stride or the base is no multiple of the element size, or the view would leave the pool.
            DataPlaneLost, NotReady: as for :attr:`bytes`.
        """
        import torch  # noqa: PLC0415, slow to import, and not everybody needs it

        layer_group, placement = self._placement(group)
        element = layer_group.element_type
        size = element.size_bytes
        strides = _element_strides(placement, size)
        end = end_bytes(layer_group, placement)
        if end > self.pool_bytes:
            raise LayoutInvalid.of_field(
                f"placements[{placement.group}]", f"ends at byte {end}", f"the pool has {self.pool_bytes} bytes"
            )
        block, layer, kv, head, token, dim = shape_of(layer_group, placement)
        dtype: torch.dtype = getattr(torch, _TORCH_NAMES.get(element, element.value))
        elements = self.bytes[: self.pool_bytes // size * size].view(dtype)
        return torch.as_strided(elements, (layer, block, kv, token, head, dim), strides, placement.base_bytes // size)

    def numpy(self) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """The whole pool as a one-dimensional uint8 array; host memory only.

        Raises:
            InvalidArgument: the pool is CUDA memory.
            DataPlaneLost, NotReady: as for :attr:`bytes`.
        """
        import numpy as np  # noqa: PLC0415, not everybody needs it

        memory = self._live().memory
        if isinstance(memory, CudaBytes):
            raise InvalidArgument.of_field("device", self.info.device, "numpy reads host memory only: use bytes")
        return np.frombuffer(memory, dtype=np.uint8)

    @property
    def lost(self) -> bool:
        """Whether its data plane went away under it, and it was not closed since: views of it show dead memory."""
        return isinstance(self._gone, DataPlaneLost)

    def close(self) -> None:
        """Hand out no more views. The memory is unmapped when the last view is gone. Idempotent."""
        if self.lost:
            self._gone = None
        self.end(NotReady(f"the pool of rank {self.rank} was closed"))

    def end(self, why: KvferryError) -> None:
        """Answer every further use with ``why``."""
        if self._gone is None:
            self._gone = why
            if self._mapped is not None:
                self._mapped.connection.close()
            self._mapped = None
            self._tensor = None

    def _live(self) -> "MappedPool":
        if self._mapped is None:
            raise self._gone or NotReady(f"the pool of rank {self.rank} is not mapped")
        return self._mapped

    def _placement(self, group: str | None) -> tuple[LayerGroup, GroupPlacement]:
        layout = self._layout
        if layout is None:
            raise InvalidArgument.of_field("layout", None, "the client was connected without a layout")
        names = [known.name for known in layout.groups]
        if group is None and len(names) == 1:
            group = names[0]
        placement = None
        if group is not None and self.rank < len(layout.ranks):
            placement = layout.ranks[self.rank].placement(group)
        if group is None or placement is None:
            raise InvalidArgument.of_field("group", group, f"rank {self.rank} holds groups of {names}")
        return layout.group(group), placement


class PoolTable:
    """The pools of one worker, and which of them are attached."""

    def __init__(self, layout: WorkerLayout | None, tell: Callable[[EngineEvent], None]) -> None:
        self._layout = layout
        self._tell = tell
        self._known: dict[int, PoolInfo] = {}
        self._attached: dict[int, AttachedPool] = {}
        self._attaching = asyncio.Lock()

    @property
    def known(self) -> tuple[PoolInfo, ...]:
        """Pools that live, in order of their ranks."""
        return tuple(self._known[rank] for rank in sorted(self._known))

    async def attach(self, rank: int) -> AttachedPool:
        """The rank's pool, mapped on first use.

        Raises:
            InvalidArgument: there is no such rank.
            DataPlaneLost: its data plane is gone.
            TransportFailed, PermissionDenied: it cannot be mapped.
        """
        async with self._attaching:
            attached = self._attached.get(rank)
            if attached is not None and attached.valid:
                return attached
            info = self._known.get(rank)
            if info is None:
                if attached is not None:
                    raise _lost(rank)
                raise InvalidArgument.of_field("rank", rank, f"attachable are {sorted(self._known)}")
            mapped = await asyncio.to_thread(map_pool, info)
            pool = AttachedPool(info, self._layout, mapped)
            if self._known.get(rank) != info:
                pool.close()
                raise _lost(rank)
            self._attached[rank] = pool
            return pool

    def mapped(self) -> list[layout_pb2.MappedPool]:
        """What control is told, so that nothing is published from, or pulled for, memory that is gone.

        Raises:
            DataPlaneLost: a pool was lost that was attached; attach it again, or close it.
        """
        mapped = []
        for rank, pool in self._attached.items():
            if pool.valid:
                mapped.append(layout_pb2.MappedPool(rank=rank, boot_id=pool.info.boot_id))
            elif pool.lost:
                raise _lost(rank)
        return mapped

    def learn(self, pools: Iterable[engine_pb2.RankPool]) -> None:
        """Take in all pools, after the engine was opened."""
        for pool in pools:
            known = self._known.get(pool.rank)
            if known is not None and known.boot_id != pool.boot_id:
                self.lost(pool.rank)
            restored = known is None or known.boot_id != pool.boot_id
            self._known[pool.rank] = _info_of(pool)
            if restored and pool.rank in self._attached:
                self._tell(PoolRestored(pool.rank))

    def lost(self, rank: int) -> None:
        """A data plane is gone."""
        if self._known.pop(rank, None) is None:
            return
        if rank in self._attached:
            self._attached[rank].end(_lost(rank))
        self._tell(PoolLost(rank))

    def restored(self, pool: engine_pb2.RankPool) -> None:
        """A data plane is back: as it was, if only its session with control broke, or in another life."""
        known = self._known.get(pool.rank)
        if known is not None and known.boot_id == pool.boot_id:
            return
        self.lost(pool.rank)
        self._known[pool.rank] = _info_of(pool)
        self._tell(PoolRestored(pool.rank))

    def close(self) -> None:
        """Close every attached pool."""
        for pool in self._attached.values():
            pool.close()


@dataclass(frozen=True, slots=True)
class MappedPool:
    """Memory of a pool in this process, and the connection that tells its owner that it is in use."""

    memory: "Memory"
    torch_device: str
    """Torch's name of the device here; a data plane may know it under another index."""
    connection: socket.socket


def map_pool(info: PoolInfo) -> MappedPool:
    """Ask a pool socket for its pool and map it. Blocks for at most ``ATTACH_S``.

    Raises:
        DataPlaneLost: nobody listens, or another life of the data plane does.
        PermissionDenied: the socket may not be used by this process.
        TransportFailed: what was offered cannot be mapped.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ATTACH_S)
        try:
            connection.connect(info.pool_socket)
        except PermissionError as error:
            raise PermissionDenied.of_field("pool_socket", info.pool_socket, str(error)) from error
        except OSError as error:
            raise DataPlaneLost.of_field("pool_socket", info.pool_socket, str(error)) from error
        message, descriptors = receive_offer(connection, timeout_s=ATTACH_S)
        memory, torch_device = _map_offer(info, message, *descriptors)
    except BaseException:
        connection.close()
        raise
    return MappedPool(memory, torch_device, connection)


def _map_offer(info: PoolInfo, message: bytes, descriptor: int | None = None) -> "tuple[Memory, str]":
    try:
        offer = dataplane_pb2.PoolOffer.FromString(message)
        if offer.boot_id != info.boot_id:
            raise DataPlaneLost(f"the data plane of rank {info.rank} has restarted")
        if offer.cuda_ipc_handle:
            return _open_cuda(offer)
        if descriptor is None:
            raise TransportFailed(f"the data plane of rank {info.rank} offered no memory")
        return map_shared_memory(descriptor, offer.pool_bytes), "cpu"
    except DecodeError as error:
        raise TransportFailed(f"the data plane of rank {info.rank} offered what is no pool: {error}") from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_cuda(offer: dataplane_pb2.PoolOffer) -> tuple[CudaBytes, str]:
    device = open_device_by_uuid(offer.cuda_device_uuid)
    address = device.open_handle(offer.cuda_ipc_handle)
    memory = CudaBytes(address, offer.pool_bytes)
    # The tensors over it hold it: it is unmapped after the last of them. At exit the driver does that.
    weakref.finalize(memory, device.close_handle, address).atexit = False
    return memory, f"cuda:{device.index}"


def _element_strides(placement: GroupPlacement, size: int) -> tuple[int, int, int, int, int, int]:
    """Strides in elements, in the order of a view's axes."""
    distances = {f"strides.{axis}": stride for axis, stride in placement.strides._asdict().items()}
    for name, distance in {**distances, "base_bytes": placement.base_bytes}.items():
        if distance % size:
            where = f"placements[{placement.group}].{name}"
            raise LayoutInvalid.of_field(where, distance, f"no multiple of the {size} bytes of an element")
    strides = placement.strides
    axes = (strides.layer, strides.block, strides.kv, strides.token, strides.head, strides.dim)
    layer, block, kv, token, head, dim = (stride // size for stride in axes)
    return layer, block, kv, token, head, dim


def _info_of(pool: engine_pb2.RankPool) -> PoolInfo:
    return PoolInfo(pool.rank, pool.device, pool.pool_bytes, pool.pool_socket, pool.boot_id)


def _lost(rank: int) -> DataPlaneLost:
    why = f"the data plane of rank {rank} was lost, and its pool with it; attach again once it is back"
    return DataPlaneLost(why, metadata={"rank": str(rank)})
