"""A simulated cluster: etcd, workers of control, data planes and engine, and the supervisor that starts them again."""

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kvferry.core.dense import CROSS_LAYER, HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry_control.config import ControlConfig
from kvferry_control.config_reading import parse_config
from tests.simulation.control import ControlLife
from tests.simulation.dataplane import DataPlaneLife, small_bounds
from tests.simulation.engine import EngineJournal, EngineLife, Load
from tests.simulation.etcd_server import ADDRESS, EtcdServer
from tests.simulation.etcd_store import EtcdStore
from tests.simulation.fabric import Fabric
from tests.simulation.memory import WorkerMemory
from tests.simulation.network import Network
from tests.simulation.router import Router
from tests.simulation.trace import Trace
from tests.simulation.virtual_loop import Clock, Process, VirtualLoop, describe

RESPAWN_SECONDS = 0.3
"""After a process ended by itself."""


@dataclass(eq=False)
class Part:
    """A process that is started again and again. ``begin`` makes a life of it, in its process, and its work."""

    name: str
    clock: Clock
    begin: Callable[[], Coroutine[Any, Any, None]]
    process: Process | None = None
    starts_at: float | None = None
    """When it is to be started; None while it runs."""


@dataclass(eq=False)
class Worker:
    """One worker's parts and what they have in common."""

    name: str
    memory: WorkerMemory
    config: ControlConfig
    load: Load
    journal: EngineJournal
    clock: Clock
    control: ControlLife | None = None
    engine: EngineLife | None = None
    planes: dict[int, DataPlaneLife] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)

    def part(self, what: str) -> Part:
        """One of its parts."""
        return next(part for part in self.parts if part.name == f"{self.name}/{what}")


@dataclass(eq=False)
class Cluster:
    """All of it. ``active`` says whether engines begin new work."""

    loop: VirtualLoop
    network: Network
    fabric: Fabric
    seeded: random.Random
    trace: Trace
    violation: Callable[[str], None]
    store: EtcdStore = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    router: Router = field(default_factory=Router)
    active: bool = True

    def __post_init__(self) -> None:
        self.store = EtcdStore(1)
        self.parts.append(Part("etcd/etcd", Clock(), self._begin_etcd))
        prefills, decodes = self.seeded.choice(((1, 1), (1, 1), (2, 1), (1, 2)))
        layouts = _layouts(self.seeded)
        roles = ["prefill"] * prefills + ["decode"] * decodes
        for number, role in enumerate(roles):
            both = self.seeded.random() < 0.15
            self._add_worker(f"{role}{number}", "both" if both else role, layouts[role])

    def start(self) -> None:
        """Start every part."""
        for part in self.parts:
            self.start_part(part)

    def start_part(self, part: Part) -> None:
        """Begin a life of a part."""
        process = part.process = self.loop.spawn(part.name, part.clock)
        part.starts_at = None
        self.trace.say(part.name, "starts")
        self.loop.start(process, self._live(part, process))

    def kill(self, part: Part, down_s: float) -> None:
        """End a part's life where it stands; another begins after a while."""
        process = part.process
        if process is None:
            return
        self.loop.kill(process)
        self.network.process_ended(process)
        self._down(part, down_s)

    async def _live(self, part: Part, process: Process) -> None:
        try:
            await part.begin()
        except Exception as error:
            self.loop.defect(f"the process ended by {describe(error)}")
        self.trace.say(part.name, "ended by itself")
        if part.process is process:
            self.kill(part, RESPAWN_SECONDS)

    def _down(self, part: Part, down_s: float) -> None:
        part.process = None
        part.starts_at = self.loop.now + down_s
        self.network.later(down_s, lambda: self._back(part))

    def _back(self, part: Part) -> None:
        if part.starts_at is not None and self.loop.now >= part.starts_at:
            self.start_part(part)

    def _add_worker(self, name: str, role: str, layout: WorkerLayout) -> None:
        clock = Clock(self.seeded.uniform(0.97, 1.03), self.seeded.uniform(100.0, 1e5))
        memory = WorkerMemory(name, layout)
        load = Load(
            publishes=role != "decode",
            pulls=role != "prefill",
            pause_s=self.seeded.choice((0.02, 0.1, 0.4)),
            ttl_s=self.seeded.choice(((0.5, 2.0), (2.0, 4.0), (0.2, 1.0, 4.0))),
            timeout_s=self.seeded.choice(((0.3, 1.0), (1.0, 4.0), (0.1, 4.0))),
            cancel_chance=self.seeded.choice((0.0, 0.2)),
            release_chance=self.seeded.choice((0.0, 0.3)),
        )
        worker = Worker(name, memory, self._config(name, role, layout), load, EngineJournal(memory), clock)
        self.workers.append(worker)
        for rank in layout.ranks:
            begin = partial(self._begin_plane, worker, rank.rank)
            worker.parts.append(Part(f"{name}/dataplane{rank.rank}", clock, begin))
        worker.parts.append(Part(f"{name}/control", clock, partial(self._begin_control, worker)))
        worker.parts.append(Part(f"{name}/engine", clock, partial(self._begin_engine, worker)))
        self.parts += worker.parts

    def _config(self, name: str, role: str, layout: WorkerLayout) -> ControlConfig:
        limits = {
            "active_transfers": self.seeded.choice((4, 64)),
            "kept_transfers": self.seeded.choice((4, 64)),
            "live_publications": self.seeded.choice((4, 64)),
            "kept_publications": self.seeded.choice((4, 64)),
            "engine_timeout_s": 3.0,
        }
        return parse_config(
            {
                "worker": {"name": name, "role": role, "listen": f"{name}:1", "engine_socket": f"/{name}/engine"},
                "ranks": [{"socket": f"/{name}/{rank.rank}"} for rank in layout.ranks],
                "etcd": {"endpoints": [ADDRESS], "lease_ttl_s": self.seeded.choice((1, 3))},
                "limits": limits,
            }
        )

    async def _begin_etcd(self) -> None:
        await EtcdServer(self.network, self.store).run()

    async def _begin_control(self, worker: Worker) -> None:
        worker.control = life = ControlLife(self.network, worker.config)
        await life.run()
        self.trace.say(f"{worker.name}/control", "exits", why=life.why)

    async def _begin_plane(self, worker: Worker, rank: int) -> None:
        life = DataPlaneLife(self.fabric, worker.memory, rank, f"/{worker.name}/{rank}", small_bounds(self.seeded))
        worker.planes[rank] = life
        await life.run()

    async def _begin_engine(self, worker: Worker) -> None:
        worker.engine = life = EngineLife(
            worker.journal,
            worker.config.worker.engine_socket,
            worker.load,
            self.router,
            random.Random(self.seeded.getrandbits(64)),
            self.trace,
            self.violation,
            worker.planes,
            lambda: self.active,
        )
        await life.run()


def _layouts(seeded: random.Random) -> dict[str, WorkerLayout]:
    """What prefill and decode workers hold: one model, in any two layouts."""
    model = DenseModel("m", seeded.choice((1, 2)), 2, 4, seeded.choice((2, 4)), ElementType.INT8)
    return {
        role: dense_layout(model, 12, seeded.choice((1, 1, 2)), seeded.choice((NHD, HND, CROSS_LAYER)))
        for role in ("prefill", "decode")
    }
