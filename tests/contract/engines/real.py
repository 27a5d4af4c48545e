"""Engines of real data planes: transports between hosts, over sockets or as they choose, and mapped memory."""

import asyncio
import ctypes
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvferry.core.backends import Transport
from kvferry.core.errors import TransportFailed
from kvferry.core.planning.copies import CopyPlan, StridedCopy
from kvferry_dataplane.copiers import Copiers
from kvferry_dataplane.paths import PathPolicy
from kvferry_dataplane.peers import Peer, peer_from_wire
from kvferry_dataplane.pool import open_pool
from kvferry_dataplane.reads.agent import ReadAgent, TransportReadAgent
from kvferry_dataplane.reads.batches import Batch, Regions
from kvferry_dataplane.reads.lingering import LingeringConnections
from kvferry_dataplane.reads.mailbox import Mailbox
from kvferry_dataplane.sharing.agent import LocalAgent
from kvferry_dataplane.sharing.book import SharedSources
from kvferry_dataplane.sharing.host import host_id
from kvferry_dataplane.sharing.mapper import PoolMapper
from kvferry_dataplane.sharing.source import open_source
from kvferry_dataplane.transports.opening import open_library
from tests.contract.engines.engine import WAIT_SECONDS, Bytes
from tests.process.dataplane.harness import POOL_BYTES, DataPlane, large_layout

_PAUSE_SECONDS = 0.0005
_LATE_SECONDS = 2.0
_HELD = list(range(56))


class RealSource:
    """A data-plane process."""

    def __init__(self, plane: DataPlane, runner: asyncio.Runner) -> None:
        self._plane = plane
        self._runner = runner
        runner.run(self._publish())
        self.pool: Bytes = plane.pool()
        self.pool[:] = np.random.default_rng(plane.process.pid).integers(1, 256, self.pool.size, dtype=np.uint8)

    async def _publish(self) -> None:
        await self._plane.connect(large_layout())
        self._session = await self._plane.session()
        lease = await self._session.acquire("p", _HELD, ttl=3600.0)
        await self._session.ask(expect_readers={"duration": {"seconds": 3600}})
        self.peer = peer_from_wire(await self._plane.as_peer())
        self.slot, self.word = lease.slot, lease.word

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._plane.process.poll() is None

    def end_lease(self) -> None:
        """Take the word back."""
        self._runner.run(self._session.ask(release_lease={"publication": "p"}))

    def stop(self) -> None:
        """Stop the process, and wait until the kernel says so."""
        self._plane.signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self._plane.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(_PAUSE_SECONDS)

    def resume(self) -> None:
        """Let it go on."""
        self._plane.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process."""
        self._plane.signal(signal.SIGKILL)
        self._plane.process.wait()


class _RealEngine:
    """What engines of real data planes share."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self._runner = asyncio.Runner()
        self._planes: list[DataPlane] = []
        self._set_here: set[str] = set()
        """Settings that this process's library made for itself, which a data plane would take for its user's."""
        self._own = open_pool("cpu", POOL_BYTES)
        region = self._own.region
        self.pool: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * region.size_bytes).from_address(region.address))

    def source(self) -> RealSource:
        """Start a data plane."""
        launcher = ("env", *(f"--unset={name}" for name in self._set_here))
        plane = DataPlane(self._folder, f"source-{len(self._planes)}", {}, *self._flags, launcher=launcher)
        self._planes.append(plane)
        return RealSource(plane, self._runner)

    def pass_time(self) -> None:
        """Let the other processes run."""
        time.sleep(_PAUSE_SECONDS)

    def settle(self) -> None:
        """Longer than what is in sockets takes."""
        time.sleep(_LATE_SECONDS)

    def close(self) -> None:
        """End the data planes, and leave the environment as it was."""
        for name in self._set_here:
            del os.environ[name]
        for plane in self._planes:
            self._runner.run(plane.close())
        self._runner.close()
        self._own.close()


class TransportEngine(_RealEngine):
    """A transport between hosts."""

    def __init__(self, folder: Path, transport: Transport, *flags: str) -> None:
        super().__init__(folder, *flags, "--same-host", "backend")
        before = set(os.environ)
        self._library = open_library(transport, for_cuda=False)
        self._set_here = set(os.environ) - before
        self._lingering = LingeringConnections()
        self._numbers = itertools.count()

    def agent(self) -> ReadAgent:
        """A disposable reader agent."""
        name = f"{self._folder.name}-{next(self._numbers)}"
        return TransportReadAgent(self._library, name, self._own.region, self._lingering)

    def connect(self, agent: ReadAgent, peer: Peer) -> None:
        """Learn a peer."""
        agent.connect(peer)

    def batch(self, plan: CopyPlan) -> Batch:
        """As it is."""
        return plan


class LocalEngine(_RealEngine):
    """Mapped memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._closing: list[Callable[[], None]] = []
        self._books: dict[int, tuple[SharedSources, Mailbox]] = {}

    def agent(self) -> ReadAgent:
        """The agent of a book of its own."""
        mailbox = Mailbox()
        mapper = PoolMapper(self._own, Copiers(2, None, mailbox.descriptor))
        sources = SharedSources(PathPolicy(), host_id(), lambda peer: open_source(peer, mapper), mailbox)
        agent = LocalAgent(sources, mapper.close)
        self._books[id(agent)] = sources, mailbox
        self._closing += [agent.close, mailbox.close]
        return agent

    def connect(self, agent: ReadAgent, peer: Peer) -> None:
        """Map a peer, and wait until it is."""
        sources, mailbox = self._books[id(agent)]
        agent.connect(peer)
        sources.connect(peer)
        mapping = sources.mapping(peer)
        while mapping is None:
            mailbox.wait(WAIT_SECONDS)
            for command in mailbox.take():
                command(0.0)
            mapping = sources.mapping(peer)
        if not mapping.backend:
            raise TransportFailed(mapping.why_not)

    def batch(self, plan: CopyPlan) -> Batch:
        """As regions of one run each."""
        runs = zip(plan.source_offsets, plan.destination_offsets, plan.lengths, strict=True)
        return Regions(tuple(StridedCopy(np.array([s]), np.array([d]), (), int(n)) for s, d, n in runs))

    def close(self) -> None:
        """End the agents too, whose threads look at the mailboxes."""
        for close in self._closing:
            close()
        super().close()
