"""A reader agent without a transport, and reads for it."""

from dataclasses import dataclass, field

import numpy as np

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import KvferryError
from kvferry.core.layouts import ElementType
from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.nixl_agent import Region
from kvferry_dataplane.paths import BatchLimits, Path, Route
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.executor import ReadExecutor
from kvferry_dataplane.reads.request import ReadBounds, ReadOutcome, ReadPart, ReadRequest

LAYOUT = dense_layout(DenseModel("m", 1, 1, 8, 1, ElementType.INT8), 4)
WORD = 0x0101010101010101
NIXL_ROUTE = Route(Path.NIXL, "UCX", "", BatchLimits(100, 1024, 2))
PACKED_ROUTE = Route(Path.PACKED, "stream", "", BatchLimits(100, 1024, 2))


def peer(name: str) -> Peer:
    """A peer."""
    region = Region("DRAM", 4096, 1 << 20)
    return Peer(name, name, b"m", region, region, Side(LAYOUT, 0, 1 << 20), "UCX")


@dataclass
class Network:
    """What the peers do: some are stuck, some answer with an error, each has a lease word."""

    stuck: set[str] = field(default_factory=set)
    errors: dict[str, KvferryError] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    agents: list["FakeAgent"] = field(default_factory=list)
    posted: list[tuple[str, str, int]] = field(default_factory=list)
    """Peer, kind and first destination offset of everything that was asked for."""
    route: Route = NIXL_ROUTE
    stopped: list[int] = field(default_factory=list)
    carried: list[tuple[str, int, float]] = field(default_factory=list)

    def make_agent(self, number: int) -> ReadAgent:
        """An agent of this network."""
        agent = FakeAgent(self, number)
        self.agents.append(agent)
        return agent


@dataclass
class FakeAgent:
    """An agent whose reads are done unless their peer is stuck or fails."""

    network: Network
    number: int
    cell_count: int = 8
    closed: bool = False
    peers: dict[int, tuple[Peer, int | None]] = field(default_factory=dict)
    cells: dict[int, int] = field(default_factory=dict)
    connected: set[str] = field(default_factory=set)

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        self.connected.add(peer.name)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self.connected.remove(peer.name)

    def route(self, part: ReadPart, piece_count: int) -> Route:
        """The route of this network."""
        return self.network.route

    def stop(self, handle: int) -> None:
        """Note that nobody wants a batch any more; of our own paths it is then over."""
        self.network.stopped.append(handle)

    def carried(self, part: ReadPart, route: Route, piece_count: int, seconds: float) -> None:
        """Note how long a part took."""
        self.network.carried.append((part.peer.name, piece_count, seconds))

    def read_blocks(self, part: ReadPart, route: Route, batch: CopyPlan) -> int:
        """Start a batch."""
        assert not self.closed
        peer = part.peer
        self.network.posted.append((peer.name, "blocks", int(batch.destination_offsets[0])))
        return self._started(peer, None)

    def read_word(self, peer: Peer, slot: int, cell: int) -> int:
        """Start reading a word."""
        assert not self.closed
        self.network.posted.append((peer.name, "word", cell))
        return self._started(peer, cell)

    def word(self, cell: int) -> int:
        """What a cell holds."""
        return self.cells[cell]

    def is_done(self, handle: int) -> bool:
        """Whether it has arrived."""
        peer, cell = self.peers[handle]
        if peer.name in self.network.errors:
            raise self.network.errors[peer.name]
        if peer.name in self.network.stuck:
            return self.network.route.is_ours and handle in self.network.stopped
        if cell is not None:
            self.cells[cell] = self.network.words.get(peer.name, WORD)
        return True

    def close(self) -> None:
        """Destroy it."""
        self.closed = True

    def _started(self, peer: Peer, cell: int | None) -> int:
        handle = len(self.peers) + 1
        self.peers[handle] = (peer, cell)
        return handle


@dataclass
class Bench:
    """An executor over a fake network, in virtual time."""

    network: Network = field(default_factory=Network)
    bounds: ReadBounds = field(default_factory=ReadBounds)
    now: float = 0.0
    outcomes: dict[str, ReadOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.executor = ReadExecutor(self.network.make_agent, self._finished, self.bounds, clock=lambda: self.now)

    def _finished(self, outcome: ReadOutcome) -> None:
        assert outcome.transfer not in self.outcomes
        self.outcomes[outcome.transfer] = outcome

    def submit(self, transfer: str, source: str, batches: int = 1, deadline: float = 100.0, priority: int = 0) -> None:
        """Queue a read of so many batches from a peer."""
        lengths = np.full(batches, 100, dtype=np.int64)
        offsets = np.arange(batches, dtype=np.int64) * 200
        part = ReadPart(peer(source), lambda: iter((CopyPlan(offsets, offsets, lengths),)), 0, WORD, 100 * batches)
        self.executor.submit(ReadRequest(transfer, (part,), 100 * batches, batches, self.now, deadline, priority))

    def run(self, seconds: float = 0.0, step: float = 0.01) -> float | None:
        """Let virtual time pass; returns the last wait."""
        end = self.now + seconds
        wait: float | None = None
        for _ in range(30):
            wait = self.executor.step(self.now)
        while self.now < end:
            self.now = min(self.now + step, end)
            wait = self.executor.step(self.now)
        return wait
