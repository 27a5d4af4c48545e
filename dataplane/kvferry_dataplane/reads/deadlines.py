"""When reads are to be over. Pure."""

import heapq
from collections.abc import Iterable, Iterator

from kvferry_dataplane.reads.request import ReadRequest

_SLACK = 256


class Deadlines:
    """The deadlines of reads, earliest first. Reads that are over leave theirs behind for a while."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def add(self, request: ReadRequest) -> None:
        """Note a read's deadline."""
        heapq.heappush(self._heap, (request.deadline, request.transfer))

    def tidy(self, live: Iterable[ReadRequest], live_count: int) -> None:
        """Drop what reads that are over left behind, if it is much. ``live`` are the others."""
        if len(self._heap) > 2 * live_count + _SLACK:
            self._heap = [(request.deadline, request.transfer) for request in live]
            heapq.heapify(self._heap)

    def passed(self, now: float) -> Iterator[str]:
        """Take out the transfers whose deadline has passed."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[1]

    def next(self) -> float | None:
        """The earliest; None if there is none. Never later than that of any read."""
        return self._heap[0][0] if self._heap else None
