"""The staging slots that one reader has been given to read."""

import time

from kvferry_dataplane.packed.staging import Slot, Staging


class HeldSlots:
    """The slots that a connection holds, by the numbers of the requests that they were taken for."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._held: dict[int, tuple[Slot, float]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._held

    @property
    def since(self) -> float | None:
        """Since when the oldest is held, on the monotonic clock; None if none is."""
        # Dictionaries keep the order of insertion.
        return next((at for _, at in self._held.values()), None)

    def take(self, size_bytes: int) -> Slot | None:
        """A slot that may be held; None if none is free, or this connection has its share.

        Raises:
            MessageTooLarge: no slot is so large.
        """
        slots = self._staging.slots
        # A reader that does not read its slots leaves the others half of them.
        if self._held and len(self._held) >= slots.count // 2:
            return None
        return slots.take_if_free(size_bytes)

    def hold(self, number: int, slot: Slot) -> None:
        """Leave a slot as it is until it is released."""
        self._held[number] = slot, time.monotonic()

    def release(self, number: int) -> bool:
        """Whether the slot of that request was held until now."""
        slot, _ = self._held.pop(number, (None, 0.0))
        if slot is None:
            return False
        self._staging.slots.give_back(slot)
        return True

    def close(self) -> None:
        """Give all of them back: nobody is told any more that what it read was right."""
        for number in list(self._held):
            self.release(number)
