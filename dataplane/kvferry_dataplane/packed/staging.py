"""Staging slots: host memory for chunks of pools that the kernel cannot send from or receive into."""

import threading
from collections import deque

from kvferry.core.errors import MessageTooLarge, ResourceExhausted
from kvferry.device.copying import Window


class StagingSlots:
    """Slots of one size in one window of host memory. They are the credits: who has none waits."""

    def __init__(self, memory: Window, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._free = deque(
            Window(memory.address + start, slot_bytes)
            for start in range(0, memory.size_bytes - slot_bytes + 1, slot_bytes)
        )
        self._changed = threading.Condition()

    @property
    def free_count(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def take(self, size_bytes: int, seconds: float) -> Window:
        """A slot for so many bytes; waits for one.

        Raises:
            MessageTooLarge: no slot is so large.
            ResourceExhausted: none became free in time.
        """
        if size_bytes > self._slot_bytes:
            raise MessageTooLarge.of_field("total_bytes", size_bytes, f"a staging slot has {self._slot_bytes}")
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._free), seconds):
                raise ResourceExhausted("every staging slot is in use")
            return self._free.popleft()

    def give_back(self, slot: Window) -> None:
        """A slot is free again."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()
