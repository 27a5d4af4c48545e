"""One-sided reads between simulated data planes, with NIXL's ways.

Bytes of a read arrive in any order, and go on arriving after nobody waits for them any more, until the reading agent is
destroyed. A stopped or unreachable source delays them; a dead one fails the read, whose last bytes may still come.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import PeerError, TransportFailed
from kvferry.core.planning.copies import CopyPlan
from kvferry.core.reasons import Reason
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.reads.request import ReadPart
from tests.simulation.memory import Bytes, Use, WorkerMemory
from tests.simulation.network import Network
from tests.simulation.virtual_loop import Process

RETRY_SECONDS = 0.02
DISCONNECT_SECONDS = 0.05
LATE_CHANCE = 0.3
"""Of the rest of a failed read to arrive all the same."""


@dataclass(eq=False)
class Host:
    """One life of a data plane, as the fabric knows it. ``expected_until`` on its own clock."""

    process: Process
    rank: int
    memory: WorkerMemory
    pool: Bytes
    words: npt.NDArray[np.uint64]
    expected_until: float = 0.0


@dataclass(eq=False)
class _Flight:
    """Something asked for: pieces that have not arrived."""

    peer: str
    pieces: list[Callable[[], None]]
    error: str = ""
    failing: bool = False


@dataclass(eq=False)
class Fabric:
    """Who can be read, by agent name."""

    network: Network
    seeded: random.Random
    violation: Callable[[str], None]
    hosts: dict[str, Host] = field(default_factory=dict)
    stuck: set[tuple[str, str]] = field(default_factory=set)
    """Hosts between which nothing moves, though control messages do."""
    late_bytes: int = 0
    """Bytes that arrived for reads that nobody waited for any more."""
    slow_seconds: float = 0.0

    def blocked(self, reader: Process, source: Host) -> bool:
        """Whether nothing moves at the moment."""
        loop, other = self.network.loop, source.process
        names = (reader.name.partition("/")[0], other.name.partition("/")[0])
        return (
            reader.is_stopped(loop.now)
            or other.is_stopped(loop.now)
            or self.network.is_cut(reader, other)
            or names in self.stuck
            or other.local(loop.now) > source.expected_until
        )

    def delay(self) -> float:
        """How long a piece takes."""
        return self.seeded.expovariate(1.0) * 300e-6 + self.seeded.random() * self.slow_seconds


class SimReadAgent:
    """A reader agent. Implements ``ReadAgent``."""

    cell_count = 64
    wakes = False

    def __init__(self, fabric: Fabric, own: Host) -> None:
        self._fabric = fabric
        self._own = own
        self._closed = False
        self._peers: dict[str, str] = {}
        self._flights: dict[int, _Flight] = {}
        self._cells = [0] * self.cell_count
        self._last = 0

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        if peer.agent_name in self._peers:
            raise TransportFailed(f"{peer.agent_name} is known already")
        self._peers[peer.agent_name] = peer.name

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        del self._peers[peer.agent_name]

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int, *, awaited: bool = False) -> int:
        """Start a batch."""
        assert isinstance(batch, CopyPlan)
        host = self._host(source.peer)
        copies = list(
            zip(batch.source_offsets.tolist(), batch.destination_offsets.tolist(), batch.lengths.tolist(), strict=True)
        )
        self._fabric.seeded.shuffle(copies)
        return self._start(source.peer, host, [lambda c=copy: self._copy(host, *c) for copy in copies])  # type: ignore[misc]

    def read_word(self, source: ReadPart, cell: int) -> int:
        """Start reading a lease word."""
        host = self._host(source.peer)
        self._cells[cell] = 0

        def arrive() -> None:
            self._cells[cell] = int(host.words[source.slot])

        assert source.slot * WORD_BYTES < host.words.nbytes
        return self._start(source.peer, host, [arrive])

    def word(self, cell: int) -> int:
        """What a cell holds."""
        return self._cells[cell]

    def is_done(self, handle: int) -> bool:
        """Whether it has arrived."""
        flight = self._flights[handle]
        if flight.error:
            raise PeerError(flight.error, reason=Reason.PEER_LOST)
        return not flight.pieces

    def wait(self, handle: int, seconds: float) -> None:
        """Nothing can be waited for."""

    def device_seconds(self, handle: int) -> float:
        """No device."""
        return 0.0

    def stop(self, handle: int) -> bool:
        """It cannot be had."""
        return False

    def close(self) -> None:
        """Nothing arrives after this."""
        self._closed = True

    def _host(self, peer: Peer) -> Host:
        if peer.agent_name not in self._peers:
            raise TransportFailed(f"{peer.agent_name} was not connected")
        return self._fabric.hosts[peer.agent_name]

    def _start(self, peer: Peer, host: Host, pieces: list[Callable[[], None]]) -> int:
        self._last += 1
        flight = self._flights[self._last] = _Flight(peer.name, pieces)
        self._schedule(flight, host, self._fabric.delay())
        return self._last

    def _schedule(self, flight: _Flight, host: Host, seconds: float) -> None:
        loop = self._fabric.network.loop
        loop.world(loop.now + seconds, lambda: self._progress(flight, host))

    def _progress(self, flight: _Flight, host: Host) -> None:
        """Some of it arrives."""
        fabric = self._fabric
        if self._closed or not self._own.process.alive or not flight.pieces:
            return
        if not host.process.alive and not flight.failing:
            flight.failing = True
            self._schedule(flight, host, DISCONNECT_SECONDS * fabric.seeded.random())
            return
        if flight.failing:
            flight.error = f"{flight.peer} disconnected"
            if fabric.seeded.random() < LATE_CHANCE:
                # What was in the network when the source died.
                loop = fabric.network.loop
                loop.world(loop.now + fabric.seeded.random() * 0.2, lambda: self._arrive_late(flight))
            return
        if fabric.blocked(self._own.process, host):
            self._schedule(flight, host, RETRY_SECONDS)
            return
        flight.pieces.pop()()
        self._schedule(flight, host, fabric.delay())

    def _arrive_late(self, flight: _Flight) -> None:
        if not self._closed and self._own.process.alive:
            for piece in flight.pieces:
                piece()

    def _copy(self, host: Host, source: int, to: int, length: int) -> None:
        own = self._own
        for block in own.memory.blocks_at(own.rank, to, length):
            use = own.memory.uses[block]
            if use not in (Use.DESTINATION, Use.QUARANTINED):
                holder = own.memory.holders.get(block, "nobody")
                self._fabric.violation(
                    f"bytes arrived in block {block} of {own.memory.worker}, which is {use.name} (last: {holder})"
                )
        own.pool[to : to + length] = host.pool[source : source + length]
