"""What the contract needs of an engine: sources, agents that read them, and time that passes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import PeerError, TransportFailed
from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.reads.request import ReadPart

Bytes = npt.NDArray[np.uint8]
WAIT_SECONDS = 30.0
CLOSE_SECONDS = 5.0
"""Within which an agent is destroyed, whatever its sources do."""
FAILED = (PeerError, TransportFailed)
"""What a source that is gone may come to."""


class Source(Protocol):
    """One life of a data plane that has published blocks."""

    @property
    def peer(self) -> Peer:
        """How readers know it."""
        ...

    @property
    def pool(self) -> Bytes:
        """Its memory."""
        ...

    @property
    def slot(self) -> int:
        """Where its lease word is."""
        ...

    @property
    def word(self) -> int:
        """The lease word that it gave out."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether its process runs, or is stopped."""
        ...

    def end_lease(self) -> None:
        """Take the word back."""
        ...

    def stop(self) -> None:
        """Stop its process."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...

    def kill(self) -> None:
        """Kill its process."""
        ...


class Engine(Protocol):
    """One way to read blocks of others into ``pool``."""

    @property
    def pool(self) -> Bytes:
        """The reader's own memory."""
        ...

    def source(self) -> Source:
        """A new source with random bytes and a lease."""
        ...

    def agent(self) -> ReadAgent:
        """A new agent."""
        ...

    def connect(self, agent: ReadAgent, peer: Peer) -> None:
        """Have an agent learn a peer; raises if it cannot."""
        ...

    def batch(self, plan: CopyPlan) -> Batch:
        """A plan as its agents take it."""
        ...

    def pass_time(self) -> None:
        """A little."""
        ...

    def settle(self) -> None:
        """As much as whatever is under way may need."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


@dataclass
class Reader:
    """An agent and what the tests do with it."""

    engine: Engine
    agent: ReadAgent
    closed: bool = False
    _cells: int = 0

    def connect(self, source: Source) -> None:
        """Learn a source."""
        self.engine.connect(self.agent, source.peer)

    def start(self, source: Source, plan: CopyPlan) -> int:
        """Start reading blocks."""
        return self.agent.read_blocks(part(source), self.engine.batch(plan), 0)

    def wait(self, handle: int) -> None:
        """Until it is done; raises what the agent raises."""
        self.until(lambda: self.agent.is_done(handle))

    def until(self, condition: Callable[[], bool]) -> None:
        """Until a condition holds."""
        limit = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < limit, "it did not come to an end"
            self.engine.pass_time()

    def word(self, source: Source) -> int:
        """The source's lease word as it is read."""
        cell = self._cells
        self._cells += 1
        self.wait(self.agent.read_word(part(source), cell))
        return self.agent.word(cell)

    def read(self, source: Source, plan: CopyPlan) -> int:
        """Read blocks, then the lease word; returns it."""
        self.wait(self.start(source, plan))
        return self.word(source)

    def close(self) -> float:
        """Destroy the agent; returns how long it took."""
        started = time.monotonic()
        self.closed = True
        self.agent.close()
        return time.monotonic() - started


def part(source: Source) -> ReadPart:
    """What is read from a source, as far as an agent looks at it."""
    return ReadPart(source.peer, lambda: iter(()), lambda: (), lambda: iter(()), source.slot, source.word)


def scattered(pool_bytes: int, block_bytes: int, seed: int, *, share: float = 0.5) -> CopyPlan:
    """Blocks in random order from and to random places, of which every third is cut short."""
    generator = np.random.default_rng(seed)
    count = pool_bytes // block_bytes
    wanted = max(int(count * share), 1)
    sources, destinations = (generator.permutation(count)[:wanted] * block_bytes for _ in range(2))
    lengths = np.full(wanted, block_bytes)
    lengths[::3] -= 8
    return CopyPlan(sources, destinations, lengths)


def after(pool: Bytes, source: Bytes, plan: CopyPlan) -> Bytes:
    """What a pool holds after a plan was carried out."""
    expected = pool.copy()
    for start, to, length in zip(plan.source_offsets, plan.destination_offsets, plan.lengths, strict=True):
        expected[to : to + length] = source[start : start + length]
    return expected
