"""When reads are to be over, or to be served. Pure."""

import heapq
from collections.abc import Iterator

_SLACK = 256


class Deadlines:
    """One moment for each transfer, earliest first."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, transfer: str, at: float) -> None:
        """Note a transfer's moment, in place of the one that it had."""
        self._times[transfer] = at
        heapq.heappush(self._heap, (at, transfer))
        if len(self._heap) > 2 * len(self._times) + _SLACK:
            self._heap = [(at, transfer) for transfer, at in self._times.items()]
            heapq.heapify(self._heap)

    def drop(self, transfer: str) -> None:
        """Forget a transfer; nothing happens if it is not known."""
        self._times.pop(transfer, None)

    def passed(self, now: float) -> Iterator[str]:
        """Take out the transfers whose moment has come."""
        while (at := self.next()) is not None and at <= now:
            transfer = heapq.heappop(self._heap)[1]
            del self._times[transfer]
            yield transfer

    def next(self) -> float | None:
        """The earliest; None if there is none."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
