"""A reader agent without a transport, and reads for it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvferry.core.backends import Transport
from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import KvferryError, TransportFailed
from kvferry.core.layouts import ElementType
from kvferry.core.planning.copies import CopyPlan, StridedCopy
from kvferry_dataplane.paths import Path, Route
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.reads.executor import ReadExecutor
from kvferry_dataplane.reads.request import BatchLimits, ReadBounds, ReadOutcome, ReadPart, ReadRequest
from kvferry_dataplane.transports.memory import Region

LAYOUT = dense_layout(DenseModel("m", 1, 1, 8, 1, ElementType.INT8), 4)
WORD = 0x0101010101010101


def peer(name: str) -> Peer:
    """A peer."""
    region = Region("DRAM", 4096, 1 << 20)
    return Peer(name, name, b"m", region, region, Side(LAYOUT, 0, 1 << 20), Transport.NIXL_UCX)


NIXL = Route(Path.NIXL, "UCX", "the only one")


def bounds(*, batch_bytes_max: int = 100, step_bytes_max: int = 64 << 20, **others: Any) -> ReadBounds:
    """Small bounds."""
    return ReadBounds(
        transport=BatchLimits(batch_bytes_max, 1024, 2),
        packed=BatchLimits(batch_bytes_max, 1024, 4),
        step_bytes_max=step_bytes_max,
        **others,
    )


@dataclass
class FakeRouting:
    """Routes by name of the peer; NIXL for those that are not named. None: not found out yet."""

    routes: dict[str, Route | None] = field(default_factory=dict)
    lost: list[Peer] = field(default_factory=list)
    errors: dict[str, KvferryError] = field(default_factory=dict)
    learned: list[tuple[str, int, float]] = field(default_factory=list)

    def connect(self, peer: Peer) -> bool:
        """Learn a peer."""
        return True

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""

    def route(self, part: ReadPart) -> Route | None:
        """The path of a part."""
        if part.peer.name in self.errors:
            raise self.errors[part.peer.name]
        return self.routes.get(part.peer.name, NIXL)

    def carried(self, part: ReadPart, route: Route, piece_count: int, seconds: float) -> None:
        """Note it."""
        self.learned.append((part.peer.name, piece_count, seconds))

    def take_lost(self) -> list[Peer]:
        """Peers that have died."""
        taken, self.lost = self.lost, []
        return taken


@dataclass
class Network:
    """What the peers do: some are stuck, some answer with an error, each has a lease word."""

    stuck: set[str] = field(default_factory=set)
    errors: dict[str, KvferryError] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    unreachable: set[tuple[int, str]] = field(default_factory=set)
    """Numbers of agents and the peers that they cannot learn."""
    agents: list["FakeAgent"] = field(default_factory=list)
    posted: list[tuple[str, str, int]] = field(default_factory=list)
    """Peer, kind and first destination offset of everything that was asked for."""

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
    can_stop: bool = False
    stopped: set[int] = field(default_factory=set)

    @property
    def wakes(self) -> bool:
        """Whether it need not be polled."""
        return self.can_stop

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        if (self.number, peer.name) in self.network.unreachable:
            raise TransportFailed(f"agent {self.number} does not reach {peer.name}")
        self.connected.add(peer.agent_name)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self.connected.remove(peer.agent_name)

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int, *, awaited: bool = False) -> int:
        """Start a batch."""
        assert not self.closed
        assert isinstance(batch, CopyPlan)
        self.network.posted.append((source.peer.name, "blocks", int(batch.destination_offsets[0])))
        return self._started(source.peer, None)

    def read_word(self, source: ReadPart, cell: int) -> int:
        """Start reading a word."""
        assert not self.closed
        self.network.posted.append((source.peer.name, "word", cell))
        return self._started(source.peer, cell)

    def word(self, cell: int) -> int:
        """What a cell holds."""
        return self.cells[cell]

    def is_done(self, handle: int) -> bool:
        """Whether it has arrived."""
        peer, cell = self.peers[handle]
        if peer.name in self.network.errors:
            raise self.network.errors[peer.name]
        if peer.name in self.network.stuck:
            return handle in self.stopped
        if cell is not None:
            self.cells[cell] = self.network.words.get(peer.name, WORD)
        return True

    def wait(self, handle: int, seconds: float) -> None:
        """Nothing can be waited for."""

    def device_seconds(self, handle: int) -> float:
        """No device."""
        return 0.0

    def stop(self, handle: int) -> bool:
        """End a batch early, if it can."""
        if self.can_stop:
            self.stopped.add(handle)
        return self.can_stop

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
    bounds: ReadBounds = field(default_factory=bounds)
    routing: FakeRouting = field(default_factory=FakeRouting)
    lasting: dict[Path, ReadAgent] = field(default_factory=dict)
    now: float = 0.0
    outcomes: dict[str, ReadOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.executor = ReadExecutor(
            self.network.make_agent,
            self._finished,
            self.routing,
            self.lasting,
            self.bounds,
            clock=lambda: self.now,
        )

    def _finished(self, outcome: ReadOutcome) -> None:
        assert outcome.transfer not in self.outcomes
        self.outcomes[outcome.transfer] = outcome

    def submit(
        self,
        transfer: str,
        source: str,
        batches: int = 1,
        deadline: float = 100.0,
        priority: int = 0,
        *,
        queue_seconds: float | None = None,
    ) -> None:
        """Queue a read of so many batches from a peer; with ``queue_seconds`` the deadline begins when it is served."""
        self.executor.submit(self.request(transfer, source, batches, deadline, priority, queue_seconds=queue_seconds))

    def request(
        self,
        transfer: str,
        source: str,
        batches: int = 1,
        deadline: float = 100.0,
        priority: int = 0,
        *,
        queue_seconds: float | None = None,
    ) -> ReadRequest:
        """A read as :meth:`submit` queues it."""
        lengths = np.full(batches, 100, dtype=np.int64)
        offsets = np.arange(batches, dtype=np.int64) * 200
        region = StridedCopy(offsets, offsets, (), 100)
        part = ReadPart(
            peer(source),
            lambda: iter((CopyPlan(offsets, offsets, lengths),)),
            lambda: (region,),
            lambda: iter(()),
            0,
            WORD,
            100 * batches,
        )
        queue_deadline = None if queue_seconds is None else self.now + queue_seconds
        return ReadRequest(
            transfer,
            (part,),
            100 * batches,
            batches,
            self.now,
            deadline if queue_deadline is None else queue_deadline + deadline,
            priority,
            source,
            queue_deadline,
            deadline,
        )

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
