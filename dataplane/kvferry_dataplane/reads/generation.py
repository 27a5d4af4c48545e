"""A life of the reader agent, and what is in flight on it."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from kvferry.core.errors import TransportFailed
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.active import ActiveRead
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.batches import Batch


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
    batch: Batch | None = None
    cell: int = 0
    stopped: bool = False
    """Whether its early end was asked for, and can be had."""

    @property
    def in_flight_bytes(self) -> int:
        """Bytes that count against the peer's window."""
        return self.batch.total_bytes if self.batch is not None else 0


@dataclass(eq=False, slots=True)
class Generation:
    """One reader agent from its making to its end."""

    number: int
    agent: ReadAgent
    lasting: bool = False
    """Whether the agent can end each of its reads, and fails only where nothing more arrives: it is never retired."""
    connected: dict[str, Peer] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Connected peers whose connection failed: it is made anew before the next use."""
    flights: list[Flight] = field(default_factory=list)
    unconfirmed: list[Flight] = field(default_factory=list)
    """Batches that failed: only the end of the agent says that nothing of them still arrives."""
    free_cells: deque[int] = field(default_factory=deque)
    retire_at: float | None = None
    """When it is destroyed at the latest; None while it takes new work."""
    forgotten: int = 0
    """Peers that it was made to forget."""
    refused: bool = False
    """Whether it could not learn a peer: it reaches others over the interfaces that were up when it was made, and over
    no others ever."""
    unwanted_since: float | None = None
    """Since when it has only flights that nobody waits for."""

    def __post_init__(self) -> None:
        self.free_cells.extend(range(self.agent.cell_count))

    def connect(self, peer: Peer) -> bool:
        """Make sure that the agent knows a peer; False while what is left of a broken connection is still in flight.

        Raises:
            TransportFailed: the backend refuses the peer.
        """
        if peer.name in self.broken:
            shared = [peer, *self._sharing(peer)]
            if any(flight.peer.name == other.name for flight in self.flights for other in shared):
                return False
            for other in shared:
                self.forget(other)
        if peer.name not in self.connected:
            if not self._sharing(peer):
                self._learn(peer)
            self.connected[peer.name] = peer
        return True

    def forget(self, peer: Peer) -> None:
        """Make the agent forget a peer, if it knows it."""
        self.broken.discard(peer.name)
        if self.connected.pop(peer.name, None) is not None and not self._sharing(peer):
            self.forgotten += 1
            self.agent.disconnect(peer)

    def _learn(self, peer: Peer) -> None:
        try:
            self.agent.connect(peer)
        except TransportFailed:
            self.refused = True
            raise

    def _sharing(self, peer: Peer) -> list[Peer]:
        """Other connected peers that are the same agent: a data plane that outlived an incarnation of its worker."""
        if self.lasting:
            return []
        others = self.connected.values()
        return [other for other in others if other.agent_name == peer.agent_name and other.name != peer.name]

    def bytes_in_flight(self, peer: str) -> int:
        """Bytes asked of a peer and not confirmed."""
        return sum(flight.in_flight_bytes for flight in self.flights if flight.peer.name == peer)

    def has_probe(self, peer: str) -> bool:
        """Whether a peer is being probed."""
        return any(flight.purpose is Purpose.PROBE and flight.peer.name == peer for flight in self.flights)

    def has_blocks_of(self, read: ActiveRead) -> bool:
        """Whether bytes of a read may still arrive through this agent."""
        return any(f.read is read and f.purpose is Purpose.BLOCKS for f in (*self.flights, *self.unconfirmed))

    def stop(self, read: ActiveRead) -> None:
        """Ask for the end of a read's batches, and wait for its words no more."""
        for flight in self.flights:
            if flight.read is read and flight.purpose is Purpose.WORD:
                flight.read = None
            elif flight.read is read:
                flight.stopped = self.agent.stop(flight.handle)

    def drop_failed(self, flight: Flight) -> None:
        """Take out a flight that failed; the peer's connection is made anew before its next use."""
        self.flights.remove(flight)
        self.broken.update(peer.name for peer in (flight.peer, *self._sharing(flight.peer)))
        # Any other agent leaves the cell of a failed word unused: it may still arrive there.
        if self.lasting and flight.purpose is Purpose.WORD:
            self.free_cells.append(flight.cell)

    def is_awaited(self) -> bool:
        """Whether any read that goes on still waits for one of the flights."""
        return any(flight.read is not None and not flight.read.ending for flight in self.flights)
