"""The transport that the simulation plays, so that what is shown there holds for the real ones."""

import asyncio
import itertools
import math
import random
from dataclasses import dataclass

import numpy as np

from kvferry.core.backends import Transport
from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.leases import new_word
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.transports.memory import Region
from tests.contract.engines.engine import Bytes
from tests.simulation.fabric import Fabric, Host, SimReadAgent
from tests.simulation.memory import Use, WorkerMemory
from tests.simulation.network import Network
from tests.simulation.trace import Trace
from tests.simulation.virtual_loop import Clock, VirtualLoop

LAYOUT = dense_layout(DenseModel("m", 1, 1, 64, 16, ElementType.INT8), 256)
_STEP_SECONDS = 0.002
_LATE_SECONDS = 2.0
_SLOT = 3


@dataclass
class SimSource:
    """A played data plane."""

    host: Host
    peer: Peer
    loop: VirtualLoop
    slot: int = _SLOT

    def __post_init__(self) -> None:
        self.word = new_word()
        self.host.words[self.slot] = self.word

    @property
    def pool(self) -> Bytes:
        """Its memory."""
        return self.host.pool

    @property
    def is_alive(self) -> bool:
        """Whether it was not killed."""
        return self.host.process.alive

    def end_lease(self) -> None:
        """Take the word back."""
        self.host.words[self.slot] = 0

    def stop(self) -> None:
        """It gets no processor."""
        self.host.process.stopped_until = math.inf

    def resume(self) -> None:
        """It does again."""
        self.host.process.stopped_until = self.loop.now

    def kill(self) -> None:
        """End it."""
        self.loop.kill(self.host.process)


class SimEngine:
    """The simulation's fabric, outside a run."""

    def __init__(self, seed: int) -> None:
        self._seeded = random.Random(seed)  # noqa: S311 - a seed has to give the same run again
        self._loop = VirtualLoop(self._seeded)
        self._numbers = itertools.count()
        violations: list[str] = []
        self._fabric = Fabric(Network(self._loop, self._seeded, Trace()), self._seeded, violations.append)
        self._own = self._host("reader")
        self.pool: Bytes = self._own.pool
        self._violations = violations

    def source(self) -> SimSource:
        """Another process."""
        name = f"source-{next(self._numbers)}"
        host = self._host(name)
        host.pool[:] = np.frombuffer(self._seeded.randbytes(host.pool.size), dtype=np.uint8) | 1
        region = Region("DRAM", 4096, host.pool.size)
        side = Side(LAYOUT, 0, host.pool.size)
        return SimSource(host, Peer(name, name, b"m", region, region, side, Transport.NIXL_UCX), self._loop)

    def agent(self) -> ReadAgent:
        """A reader agent."""
        return SimReadAgent(self._fabric, self._own)

    def connect(self, agent: ReadAgent, peer: Peer) -> None:
        """Learn a peer."""
        agent.connect(peer)

    def batch(self, plan: CopyPlan) -> Batch:
        """As it is."""
        return plan

    def pass_time(self) -> None:
        """Virtual time."""
        self._run(_STEP_SECONDS)

    def settle(self) -> None:
        """More of it."""
        self._run(_LATE_SECONDS)

    def close(self) -> None:
        """End the loop."""
        self._loop.close()
        assert [] == self._violations

    def _run(self, seconds: float) -> None:
        self._loop.run_until_complete(self._loop.start(self._own.process, asyncio.sleep(seconds)))

    def _host(self, name: str) -> Host:
        memory = WorkerMemory(name, LAYOUT)
        memory.use(tuple(range(len(memory.uses))), Use.DESTINATION, "the contract")
        pool = np.zeros(memory.pool_bytes(0), dtype=np.uint8)
        memory.pools[0] = pool
        process = self._loop.spawn(name, Clock())
        host = Host(process, 0, memory, pool, np.zeros(16, dtype=np.uint64), math.inf)
        self._fabric.hosts[name] = host
        return host
