"""Reads that wait for their turn, by lane and priority. Pure."""

import heapq
from itertools import count

from kvferry_dataplane.reads.request import ReadRequest

Lane = tuple[str, ...]


class ReadQueue:
    """Waiting reads; higher priorities first, equal ones in order of arrival, each lane by itself."""

    def __init__(self) -> None:
        self._arrivals = count()
        self._lanes: dict[Lane, list[tuple[int, int, ReadRequest]]] = {}
        self._waiting: dict[str, ReadRequest] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, transfer: object) -> bool:
        return transfer in self._waiting

    def push(self, request: ReadRequest) -> None:
        """Add a read."""
        self._waiting[request.transfer] = request
        heapq.heappush(self._lanes.setdefault(request.lane, []), (-request.priority, next(self._arrivals), request))

    def remove(self, transfer: str) -> ReadRequest | None:
        """Take a read out early; None if it does not wait."""
        request = self._waiting.pop(transfer, None)
        if request is not None:
            lane = self._lanes[request.lane]
            lane[:] = [entry for entry in lane if entry[2] is not request]
            heapq.heapify(lane)
            if not lane:
                del self._lanes[request.lane]
        return request

    def heads(self) -> list[ReadRequest]:
        """The next read of each lane, highest priority first."""
        return [entry[2] for entry in sorted(lane[0] for lane in self._lanes.values())]

    def waiting(self) -> list[ReadRequest]:
        """All waiting reads, in no particular order."""
        return list(self._waiting.values())
