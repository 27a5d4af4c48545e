"""Both ends of packed reads by NIXL in one process; a test plays NIXL, since the memory of both is at hand."""

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import PeerError
from kvferry.core.reasons import Reason
from kvferry.device.native import HostCopier
from kvferry_dataplane.config import Listen
from kvferry_dataplane.packed.bounds import ReaderBounds, ServerBounds
from kvferry_dataplane.packed.connection import PackPeer
from kvferry_dataplane.packed.server import PackServer
from kvferry_dataplane.packed.slot_job import SlotJob
from kvferry_dataplane.packed.slot_reader import SlotReader
from kvferry_dataplane.packed.source import HostSource
from kvferry_dataplane.packed.staging import Staging, staging_memory
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.transports.memory import Region
from tests.unit.dataplane.fakes import peer
from tests.unit.dataplane.packed.ends import BOOT_ID, POISON, SLOT, WORD, Bytes, noise, wait_until, window

SLOT_BYTES = 64 << 10


def make_staging(pool: Bytes, copier: HostCopier, count: int) -> Staging:
    """So many slots for a pool in host memory."""
    return Staging(window(pool), lambda: copier, lambda: staging_memory(None, count * SLOT_BYTES), SLOT_BYTES)


def source_at(port: int, address: int, size_bytes: int, name: str = "source") -> Peer:
    """A source that packs on this port and holds chunks in this memory."""
    pack = PackPeer(f"127.0.0.1:{port}", BOOT_ID)
    return replace(peer(name), pack=pack, pack_slots=Region("DRAM", address, size_bytes))


@dataclass
class HoldingSource:
    """A pool that packs, and holds chunks."""

    pool: Bytes
    words: npt.NDArray[np.uint64]
    staging: Staging
    server: PackServer

    @classmethod
    def start(
        cls, stack: ExitStack, copier: HostCopier, slot_count: int = 4, bounds: ServerBounds | None = None
    ) -> "HoldingSource":
        """Serve a MiB of noise; slot ``SLOT`` of the lease table holds ``WORD``."""
        pool, words = noise(1 << 20), np.zeros(8, dtype=np.uint64)
        words[SLOT] = WORD
        staging = make_staging(pool, copier, slot_count)
        stack.callback(staging.close)
        where = Listen("127.0.0.1", 0)
        server = PackServer(where, BOOT_ID, words, HostSource(window(pool)), staging=staging, bounds=bounds)
        server.start()
        stack.callback(server.close)
        return cls(pool, words, staging, server)

    @property
    def peer(self) -> Peer:
        """How to read it."""
        return source_at(self.server.port, self.staging.memory.address, self.staging.memory.size_bytes)


@dataclass
class Wire:
    """What NIXL does: nothing while it is stuck; a read of a source in ``lost`` fails."""

    stuck: bool = False
    lost: set[str] = field(default_factory=set)
    agents: list["FakeAgent"] = field(default_factory=list)

    def make(self, number: int) -> "FakeAgent":
        """An agent."""
        assert number == len(self.agents) + 1
        assert all(agent.closed for agent in self.agents), "only one agent at a time writes to the slots"
        self.agents.append(FakeAgent(self))
        return self.agents[-1]


@dataclass
class FakeAgent:
    """Copies when it is asked whether it has."""

    wire: Wire
    reads: list[tuple[Peer, int, int, int]] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    closed: bool = False

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        self.peers.add(peer.agent_name)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self.peers.remove(peer.agent_name)

    def read(self, peer: Peer, address: int, own_address: int, size_bytes: int) -> int:
        """Note a read."""
        assert peer.agent_name in self.peers
        self.reads.append((peer, address, own_address, size_bytes))
        return len(self.reads) - 1

    def is_done(self, handle: int) -> bool:
        """Copy, unless nothing moves."""
        assert not self.closed
        peer, address, own_address, size_bytes = self.reads[handle]
        if peer.name in self.wire.lost:
            raise PeerError("lost", reason=Reason.PEER_LOST)
        if not self.wire.stuck:
            ctypes.memmove(own_address, address, size_bytes)
        return not self.wire.stuck

    def close(self) -> None:
        """End."""
        self.closed = True


@dataclass
class HoldingReader:
    """A pool that is read into, poisoned before. Its clock is the test's."""

    pool: Bytes
    wire: Wire
    staging: Staging
    reader: SlotReader
    seconds: list[float]

    @classmethod
    def start(cls, stack: ExitStack, copier: HostCopier, slot_count: int = 4) -> "HoldingReader":
        """Make one."""
        pool, wire, seconds = np.full(1 << 20, POISON, dtype=np.uint8), Wire(), [0.0]
        staging = make_staging(pool, copier, slot_count)
        stack.callback(staging.close)
        reader = SlotReader(staging, wire.make, ReaderBounds(), lambda: seconds[0])
        stack.callback(reader.close)
        return cls(pool, wire, staging, reader, seconds)

    def until(self, condition: Callable[[], bool]) -> None:
        """Poll until a condition holds."""

        def polled() -> bool:
            self.reader.poll()
            return condition()

        wait_until(polled)

    def finish(self, job: SlotJob) -> None:
        """Poll until the end of a job; raises what the job raises."""
        self.until(lambda: job.done)
