"""Everything that runs during chaos: etcd, workers and engines on two sides of a wire, and who brings them back."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from kvferry.launch.child import Child
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.concurrently import all_of
from kvferry.launch.control_config import Section
from kvferry.launch.errors import ProcessError
from kvferry.launch.namespaces import Namespace, NamespacePair
from kvferry.launch.worker import LocalWorker, WorkerSpec
from tests.chaos.contents import POOL_BYTES
from tests.chaos.network import Network
from tests.chaos.wire import EngineGone, EngineLink

TREE = Path(__file__).parents[2]
RESTART_PAUSE_S = 0.2
LEASE_TTL_S = 3
CONNECT_S = 30.0
_TCP = {"UCX_TLS": "tcp"}


@dataclass(frozen=True, slots=True)
class Station:
    """One worker's part in the site."""

    name: str
    role: str
    ranks: int
    order: str
    far: bool = False
    """Whether it lives on the other side of the wire than etcd."""
    flags: tuple[str, ...] = ()
    """Of its data planes."""
    told_readers: int = 8
    """How many readers its control tells of what it publishes: who is told does not wait for a control that stands."""
    data_plane: str = "kvferry_dataplane"
    """Module that is run as its data planes."""


STATIONS = (
    Station("prefill-0", "prefill", 2, "cross-layer"),
    Station("prefill-1", "prefill", 1, "nhd", far=True, told_readers=0),
    Station("decode-0", "decode", 2, "cross-layer"),
    Station("decode-1", "decode", 1, "hnd", far=True, flags=("--path", "nixl")),
    Station("decode-2", "decode", 1, "nhd", far=True, flags=("--path", "packed")),
)


@dataclass(eq=False)
class Managed:
    """One process that the supervisor keeps running."""

    name: str
    kind: str
    """engine, control or data plane."""
    worker: str
    child: Callable[[], Child]
    restart: Callable[[], Awaitable[Child]]
    expected: bool = False
    """Whether its next end is our doing."""
    stopped: list[tuple[float, float]] = field(default_factory=list)
    """When it was frozen, on the monotonic clock."""
    ready_at: float = 0.0
    """When its present life began to serve."""

    async def kill(self) -> None:
        """End it as the kernel would when memory is short."""
        self.expected = True
        await self.child().kill()

    def pause(self) -> None:
        """Freeze it."""
        self.stopped.append((time.monotonic(), float("inf")))
        self.child().pause()

    def resume(self) -> None:
        """Let it go on."""
        if self.child().status is None:
            self.child().resume()
        if self.stopped and self.stopped[-1][1] == float("inf"):
            self.stopped[-1] = self.stopped[-1][0], time.monotonic()


@dataclass(eq=False)
class Site:
    """All of it. ``processes`` by name, such as `prefill-0.control`, `prefill-0.dp1`, `decode-0.engine`."""

    cluster: LocalCluster
    network: Network
    sides: NamespacePair
    tasks: asyncio.TaskGroup
    seed: int
    stations: Mapping[str, Station]
    limits: Section
    """Of all controls."""
    workers: dict[str, LocalWorker] = field(default_factory=dict)
    processes: dict[str, Managed] = field(default_factory=dict)
    engines: dict[str, EngineLink] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    """Processes that ended though nobody had killed them."""
    _lives: int = 0
    _keepers: list["asyncio.Task[None]"] = field(default_factory=list)

    @property
    def sources(self) -> list[str]:
        """Prefill workers."""
        return [name for name, station in self.stations.items() if station.role == "prefill"]

    @property
    def destinations(self) -> list[str]:
        """Decode workers."""
        return [name for name, station in self.stations.items() if station.role == "decode"]

    def of(self, worker: str, kind: str) -> list[Managed]:
        """A worker's processes of one kind."""
        return [managed for managed in self.processes.values() if (managed.worker, managed.kind) == (worker, kind)]

    def namespace(self, worker: str) -> Namespace:
        """Where a worker lives."""
        return self.sides.destination if self.stations[worker].far else self.sides.source

    def engine_stopped(self, worker: str, began_at: float, ended_at: float) -> bool:
        """Whether the worker's engine was frozen some time in between."""
        stopped = self.processes[f"{worker}.engine"].stopped
        return any(since <= ended_at and until >= began_at for since, until in stopped)

    async def start(self, station: Station) -> None:
        """Start a worker and its engine, and keep all of it running from then on."""
        side = self.sides.destination if station.far else self.sides.source
        spec = WorkerSpec(
            name=station.name,
            role=station.role,
            ranks=station.ranks,
            pool_bytes=POOL_BYTES // station.ranks,
            listen=side.listen,
            namespace=side,
            data_plane_module=station.data_plane,
            data_plane_flags=station.flags,
            data_plane_environment={**_TCP, "PYTHONPATH": _python_path()},
            pack_listen=side.listen,
            lease_ttl_s=LEASE_TTL_S,
            limits={"told_readers": station.told_readers, **self.limits},
        )
        worker = self.workers[station.name] = self.cluster.add_worker(spec)
        await worker.start()
        self._manage(station.name, "control", lambda: worker.control, worker.start_control)
        for rank in range(station.ranks):
            child, restart = partial(worker.data_planes.__getitem__, rank), partial(worker.start_data_plane, rank)
            self._manage(station.name, "data plane", child, restart, f"dp{rank}")
        engine: list[Child] = [await self._start_engine(station)]

        async def again() -> Child:
            engine[0] = await self._start_engine(station)
            return engine[0]

        self._manage(station.name, "engine", lambda: engine[0], again)

    async def stop(self) -> None:
        """Stop bringing processes back, and end the engines; the cluster ends the others."""
        for keeper in self._keepers:
            keeper.cancel()
        for link in self.engines.values():
            link.close()
        for managed in self.processes.values():
            managed.resume()
            if managed.kind == "engine":
                await managed.child().stop()

    def _manage(
        self,
        worker: str,
        kind: str,
        child: Callable[[], Child],
        restart: Callable[[], Awaitable[Child]],
        suffix: str = "",
    ) -> None:
        name = f"{worker}.{suffix or kind}"
        managed = self.processes[name] = Managed(name, kind, worker, child, restart)
        managed.ready_at = time.monotonic()
        self._keepers.append(self.tasks.create_task(self._keep(managed)))

    async def _keep(self, managed: Managed) -> None:
        """Start a process again whenever it has ended, by the same command, as a container runtime does."""
        while True:
            status = await managed.child().wait()
            if not managed.expected:
                self.crashes.append(f"{managed.name} ended with {status}: {managed.child().log_tail(3)}")
            managed.expected = False
            await asyncio.sleep(RESTART_PAUSE_S)
            try:
                await managed.restart()
            except ProcessError as error:
                self.crashes.append(f"{managed.name} did not start: {error}")
                managed.expected = True
            managed.ready_at = time.monotonic()

    async def _start_engine(self, station: Station) -> Child:
        name = f"{station.name}.engine"
        socket = self.cluster.directory / f"{name}.chaos.sock"
        self._lives += 1
        command = ["-m", "tests.chaos.engine_process", "--engine-id", name, "--socket", str(socket)]
        command += ["--control-socket", str(self.workers[station.name].engine_socket)]
        command += ["--ranks", str(station.ranks), "--order", station.order, "--seed", str(self.seed + self._lives)]
        log = self.cluster.directory / f"{name}.log"
        child = await Child.start(name, command, log, environment={"PYTHONPATH": _python_path()})
        if (old := self.engines.pop(station.name, None)) is not None:
            old.close()
        # One that was killed at once is started again by the supervisor.
        with contextlib.suppress(EngineGone):
            self.engines[station.name] = await EngineLink.open(socket, self.tasks)
        return child


def _python_path() -> str:
    return os.pathsep.join([str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])])


@asynccontextmanager
async def running_site(
    seed: int,
    stations: Sequence[Station] = STATIONS,
    directory: Path | None = None,
    limits: Section = MappingProxyType({}),
) -> AsyncIterator[Site]:
    """Start everything; ends everything. ``limits``: those of all controls, if they are not to be the defaults.

    Raises:
        ConfigInvalid: network namespaces cannot be made here.
    """
    async with AsyncExitStack() as stack:
        sides = stack.enter_context(NamespacePair())
        cluster = await stack.enter_async_context(LocalCluster(directory=directory, etcd_namespace=sides.source))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        site = Site(
            cluster, Network(sides), sides, tasks, seed, {station.name: station for station in stations}, limits
        )
        stack.push_async_callback(site.stop)
        await all_of(site.start(station) for station in stations)
        yield site
