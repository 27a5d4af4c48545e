"""A life of the reader agent, and what is in flight on it."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.active import ActiveRead
from kvferry_dataplane.reads.agent import ReadAgent


class Purpose(Enum):
    """What a flight is for."""

    BLOCKS = auto()
    WORD = auto()
    PROBE = auto()


@dataclass(eq=False, slots=True)
class Flight:
    """Something that an agent was asked to read and that has not been confirmed."""

    purpose: Purpose
    peer: Peer
    handle: int
    read: ActiveRead | None
    """Who waits for it; None for probes, and for words whose read has ended."""
    part: int = 0
    batch: CopyPlan | None = None
    cell: int = 0
    is_ours: bool = False
    """Whether our own threads write it, see :attr:`~kvferry_dataplane.paths.Route.is_ours`."""

    @property
    def in_flight_bytes(self) -> int:
        """Bytes that count against the peer's window."""
        return self.batch.total_bytes if self.batch is not None else 0


@dataclass(eq=False, slots=True)
class Generation:
    """One reader agent from its making to its end."""

    number: int
    agent: ReadAgent
    connected: dict[str, Peer] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Connected peers whose connection failed: it is made anew before the next use."""
    flights: list[Flight] = field(default_factory=list)
    unconfirmed: list[Flight] = field(default_factory=list)
    """Batches that failed: only the end of the agent says that nothing of them still arrives."""
    free_cells: deque[int] = field(default_factory=deque)
    retire_at: float | None = None
    """When it is destroyed at the latest; None while it takes new work."""
    unwanted_since: float | None = None
    """Since when it has only flights that nobody waits for."""

    def __post_init__(self) -> None:
        self.free_cells.extend(range(self.agent.cell_count))

    def connect(self, peer: Peer) -> bool:
        """Make sure that the agent knows a peer; False while what is left of a broken connection is still in flight."""
        if peer.name in self.broken:
            if any(flight.peer.name == peer.name for flight in self.flights):
                return False
            self.forget(peer)
        if peer.name not in self.connected:
            self.agent.connect(peer)
            self.connected[peer.name] = peer
        return True

    def forget(self, peer: Peer) -> None:
        """Make the agent forget a peer, if it knows it."""
        self.broken.discard(peer.name)
        if self.connected.pop(peer.name, None) is not None:
            self.agent.disconnect(peer)

    def bytes_in_flight(self, peer: str) -> int:
        """Bytes asked of a peer and not confirmed."""
        return sum(flight.in_flight_bytes for flight in self.flights if flight.peer.name == peer)

    def has_probe(self, peer: str) -> bool:
        """Whether a peer is being probed."""
        return any(flight.purpose is Purpose.PROBE and flight.peer.name == peer for flight in self.flights)

    def has_blocks_of(self, read: ActiveRead) -> bool:
        """Whether bytes of a read may still arrive that only the end of this agent stops."""
        flights = (*self.flights, *self.unconfirmed)
        return any(f.read is read and f.purpose is Purpose.BLOCKS and not f.is_ours for f in flights)

    def is_awaited(self) -> bool:
        """Whether any read that goes on still waits for one of the flights."""
        return any(flight.read is not None and not flight.read.ending for flight in self.flights)
