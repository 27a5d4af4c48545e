"""The reads whose turn has come, and whether there is room for another. Pure.

What an active read costs is memory for its plan, counted in pieces. A source may hold as much of it as is left free,
and a lane so many reads; reads of lower priority are no obstacle to higher ones. One read of each lane that has waited
too long is let in beyond its lane's and its source's share.
"""

from collections.abc import Iterator

from kvferry_dataplane.reads.active import ActiveRead
from kvferry_dataplane.reads.request import Lane, ReadBounds, ReadRequest


class ActiveReads:
    """Active reads by transfer, in the order in which their turn came."""

    def __init__(self, bounds: ReadBounds) -> None:
        self._bounds = bounds
        self._reads: dict[str, ActiveRead] = {}
        self._by_source: dict[str, dict[str, ActiveRead]] = {}
        self._elders: dict[Lane, str] = {}
        self._pieces = 0

    def __len__(self) -> int:
        return len(self._reads)

    def __iter__(self) -> Iterator[ActiveRead]:
        return iter(list(self._reads.values()))

    def __contains__(self, transfer: object) -> bool:
        return transfer in self._reads

    def get(self, transfer: str) -> ActiveRead | None:
        """One of them."""
        return self._reads.get(transfer)

    def priorities(self) -> set[int]:
        """Those that occur."""
        return {read.request.priority for read in self._reads.values()}

    def add(self, read: ActiveRead, *, as_elder: bool = False) -> None:
        """Take a read in; ``as_elder``: because it had waited too long."""
        request = read.request
        self._reads[request.transfer] = read
        self._by_source.setdefault(request.source, {})[request.transfer] = read
        self._pieces += request.pieces_max
        if as_elder:
            self._elders[request.lane] = request.transfer

    def remove(self, request: ReadRequest) -> None:
        """Take a read out."""
        del self._reads[request.transfer]
        siblings = self._by_source[request.source]
        del siblings[request.transfer]
        if not siblings:
            del self._by_source[request.source]
        self._pieces -= request.pieces_max
        if self._elders.get(request.lane) == request.transfer:
            del self._elders[request.lane]

    def has_room(self, request: ReadRequest) -> bool:
        """Whether a read may become active."""
        if not self._reads:
            return True
        free = self._bounds.active_pieces_max - self._pieces
        siblings = self._by_source.get(request.source, {}).values()
        rivals = [read.request for read in siblings if read.request.priority >= request.priority]
        if request.pieces_max > free or (rivals and sum(rival.pieces_max for rival in rivals) >= free):
            return False
        return sum(rival.lane == request.lane for rival in rivals) < self._bounds.active_reads_per_lane

    def has_room_for_elder(self, request: ReadRequest) -> bool:
        """Whether a read that has waited too long may become active: one of each lane at a time."""
        free = self._bounds.active_pieces_max - self._pieces
        return request.lane not in self._elders and request.pieces_max <= free
