"""Staging slots: host memory for chunks that are packed for a reader, or have come and are still to be scattered."""

import mmap
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvferry.core.errors import MessageTooLarge, ResourceExhausted
from kvferry.core.planning.copies import CopyPlan, Offsets
from kvferry.device.copying import Copier, CopyJob, Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_memory import allocate_pinned, free_pinned
from kvferry.device.huge_pages import address_of

SLOT_BYTES = 4 << 20
"""As much as a reader asks for at a time."""
SLOT_COUNT = 16


@dataclass(frozen=True, slots=True)
class StagingMemory:
    """Host memory as this process sees it, and as a copier does."""

    host: Window
    copier_address: int
    free: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Slot:
    """A part of staging memory: where this process, and where a copier finds it."""

    host: Window
    for_copier: Window


class StagingSlots:
    """Slots of one size in one piece of memory. They are the credits: who has none waits. Any thread may ask."""

    def __init__(self, memory: StagingMemory, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._free = deque(
            Slot(Window(memory.host.address + start, slot_bytes), Window(memory.copier_address + start, slot_bytes))
            for start in range(0, memory.host.size_bytes - slot_bytes + 1, slot_bytes)
        )
        self.count = len(self._free)
        """Of all slots."""
        self._changed = threading.Condition()

    @property
    def free_count(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def take(self, size_bytes: int, seconds: float) -> Slot:
        """A slot for so many bytes; waits for one.

        Raises:
            MessageTooLarge: no slot is so large.
            ResourceExhausted: none became free in time.
        """
        slot = self.take_if_free(size_bytes, seconds)
        if slot is None:
            raise ResourceExhausted("every staging slot is in use")
        return slot

    def take_if_free(self, size_bytes: int, seconds: float = 0.0) -> Slot | None:
        """A slot for so many bytes; None if none became free in time.

        Raises:
            MessageTooLarge: no slot is so large.
        """
        if size_bytes > self._slot_bytes:
            raise MessageTooLarge.of_field("total_bytes", size_bytes, f"a staging slot has {self._slot_bytes}")
        with self._changed:
            if not self._free and not (seconds and self._changed.wait_for(lambda: bool(self._free), seconds)):
                return None
            return self._free.popleft()

    def give_back(self, slot: Slot) -> None:
        """A slot is free again."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()


class Staging:
    """Slots of a pool and the copier between both, made when first needed."""

    def __init__(
        self,
        pool: Window,
        make_copier: Callable[[], Copier],
        make_memory: Callable[[], StagingMemory],
        slot_bytes: int = SLOT_BYTES,
    ) -> None:
        """The copier stays its owner's; it is closed before :meth:`close`."""
        self._pool = pool
        self._make_copier = make_copier
        self._make_memory = make_memory
        self._slot_bytes = slot_bytes
        self._lock = threading.Lock()
        self._opened: tuple[StagingMemory, StagingSlots] | None = None

    @property
    def memory(self) -> Window:
        """All of the slots' memory.

        Raises:
            TransportFailed: the system grants no so much.
        """
        return self._open()[0].host

    @property
    def slots(self) -> StagingSlots:
        """The slots; raises like :attr:`memory`."""
        return self._open()[1]

    @property
    def held_count(self) -> int:
        """Slots that somebody has."""
        opened = self._opened
        return 0 if opened is None else opened[1].count - opened[1].free_count

    @property
    def copier_wakes(self) -> bool:
        """Whether the end of a copy is signalled."""
        return self._make_copier().wakes

    def pack(self, slot: Slot, offsets: Offsets, lengths: Offsets) -> CopyJob:
        """Start copying pieces of the pool into a slot, one after the other; raises like a copier's ``submit``."""
        plan = CopyPlan(offsets, np.cumsum(lengths) - lengths, lengths)
        return self._make_copier().submit(self._pool, slot.for_copier, [plan])

    def scatter(self, slot: Slot, batch: CopyPlan) -> CopyJob:
        """Start copying pieces that lie in a slot into the pool, where ``batch`` says."""
        plan = CopyPlan(np.cumsum(batch.lengths) - batch.lengths, batch.destination_offsets, batch.lengths)
        return self._make_copier().submit(slot.for_copier, self._pool, [plan])

    def close(self) -> None:
        """Free the memory: nobody uses a slot any more."""
        with self._lock:
            opened, self._opened = self._opened, None
            if opened is not None:
                opened[0].free()

    def _open(self) -> tuple[StagingMemory, StagingSlots]:
        with self._lock:
            if self._opened is None:
                memory = self._make_memory()
                self._opened = memory, StagingSlots(memory, self._slot_bytes)
            return self._opened


def staging_memory(device: CudaDevice | None, size_bytes: int = SLOT_COUNT * SLOT_BYTES) -> StagingMemory:
    """Memory for slots, pinned where a device copies.

    Raises:
        TransportFailed: the system grants no so much.
    """
    if device is not None:
        pinned = allocate_pinned(device, size_bytes)
        window = Window(pinned.address, size_bytes)
        return StagingMemory(window, pinned.device_address, lambda: free_pinned(device, pinned))
    # With all of its pages, so that no chunk has to wait for them.
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    address = address_of(memory)
    return StagingMemory(Window(address, size_bytes), address, memory.close)
