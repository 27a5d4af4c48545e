"""What the executor needs of whoever knows the ways to peers."""

from collections.abc import Sequence
from typing import Protocol

from kvferry_dataplane.paths import Route
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.request import ReadPart


class Routing(Protocol):
    """Finds the path of what comes from a source rank. Belongs to the reads' thread."""

    def connect(self, peer: Peer) -> bool:
        """Learn a peer; begin what takes time. Returns whether NIXL will be needed, as far as is known."""
        ...

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        ...

    def route(self, part: ReadPart) -> Route | None:
        """The path of a part; None while that is being found out.

        Raises:
            KvferryError: the peer is lost, or the configured path is impossible.
        """
        ...

    def carried(self, part: ReadPart, route: Route, piece_count: int, seconds: float) -> None:
        """Learn from how long a part took, from its first batch to its last byte."""
        ...

    def take_lost(self) -> Sequence[Peer]:
        """Peers that have died since this was last asked."""
        ...
