"""Reads that wait for their turn, by lane and priority. Pure."""

import heapq
from itertools import count

from kvferry_dataplane.reads.request import Lane, ReadRequest

_SLACK = 64


class _LaneQueue:
    """The waiting reads of one lane. Reads that left early stay in the heap until they come up, or become many."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, ReadRequest]] = []
        self.by_arrival: dict[str, ReadRequest] = {}

    def push(self, arrival: int, request: ReadRequest) -> None:
        self.by_arrival[request.transfer] = request
        heapq.heappush(self._heap, (-request.priority, arrival, request))

    def remove(self, transfer: str) -> ReadRequest:
        request = self.by_arrival.pop(transfer)
        if len(self._heap) > 2 * len(self.by_arrival) + _SLACK:
            self._heap = [entry for entry in self._heap if self._waits(entry[2])]
            heapq.heapify(self._heap)
        return request

    def head(self) -> tuple[int, int, ReadRequest]:
        while not self._waits(self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0]

    def eldest(self) -> ReadRequest:
        return next(iter(self.by_arrival.values()))

    def _waits(self, request: ReadRequest) -> bool:
        return self.by_arrival.get(request.transfer) is request


class ReadQueue:
    """Waiting reads; higher priorities first, equal ones in order of arrival, each lane by itself."""

    def __init__(self) -> None:
        self._arrivals = count()
        self._lanes: dict[Lane, _LaneQueue] = {}
        self._lane_of: dict[str, Lane] = {}
        self.total_bytes = 0
        """Of all waiting reads."""

    def __len__(self) -> int:
        return len(self._lane_of)

    def __contains__(self, transfer: object) -> bool:
        return transfer in self._lane_of

    def push(self, request: ReadRequest) -> None:
        """Add a read; no other of its transfer may wait."""
        lane = request.lane
        self._lane_of[request.transfer] = lane
        if lane not in self._lanes:
            self._lanes[lane] = _LaneQueue()
        self._lanes[lane].push(next(self._arrivals), request)
        self.total_bytes += request.total_bytes

    def remove(self, transfer: str) -> ReadRequest | None:
        """Take a read out; None if it does not wait."""
        lane = self._lane_of.pop(transfer, None)
        if lane is None:
            return None
        request = self._lanes[lane].remove(transfer)
        if not self._lanes[lane].by_arrival:
            del self._lanes[lane]
        self.total_bytes -= request.total_bytes
        return request

    def get(self, transfer: str) -> ReadRequest | None:
        """A read that waits; None if it does not."""
        lane = self._lane_of.get(transfer)
        return None if lane is None else self._lanes[lane].by_arrival[transfer]

    def heads(self) -> list[ReadRequest]:
        """The next read of each lane, highest priority first."""
        return [entry[2] for entry in sorted(lane.head() for lane in self._lanes.values())]

    def eldest(self) -> list[ReadRequest]:
        """Of each lane the read that has waited longest; the first accepted first."""
        eldest = (lane.eldest() for lane in self._lanes.values())
        return sorted(eldest, key=lambda request: request.accepted_at)

    def waiting(self) -> list[ReadRequest]:
        """All waiting reads, in no particular order."""
        return [request for lane in self._lanes.values() for request in lane.by_arrival.values()]
