"""When reads are overdue. Pure."""

import heapq
from collections.abc import Callable, Iterable, Iterator

from kvferry_dataplane.reads.request import ReadRequest

_SLACK = 256


class Deadlines:
    """Deadlines in order. Reads that are over leave theirs behind; those are dropped now and then."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def push(self, request: ReadRequest, live_count: int, live: Callable[[], Iterable[ReadRequest]]) -> None:
        """Add a read's; ``live`` lists the reads that are not over, this one included."""
        heapq.heappush(self._heap, (request.deadline, request.transfer))
        if len(self._heap) > 2 * live_count + _SLACK:
            self._heap = [(other.deadline, other.transfer) for other in live()]
            heapq.heapify(self._heap)

    def pop_overdue(self, now: float) -> Iterator[str]:
        """Take out the transfers whose deadline has come."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[1]

    def next(self) -> float | None:
        """The next deadline, perhaps of a read that is over."""
        return self._heap[0][0] if self._heap else None
