"""What goes wrong, and when: drawn from the seed."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tests.simulation.cluster import Cluster, Part
from tests.simulation.etcd_store import EtcdStore

STOP_SECONDS = (0.05, 0.5, 1.2, 3.0, 6.0)
CUT_SECONDS = (0.1, 1.0, 3.0, 6.0)
DOWN_SECONDS = (0.01, 0.3, 1.5, 5.0)


@dataclass(eq=False)
class Faults:
    """Makes faults until ``until``, on the loop's time."""

    cluster: Cluster
    seeded: random.Random
    until: float
    pause_s: float
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        kinds: dict[str, Callable[[], str]] = {
            "kill control": lambda: self._kill("control"),
            "kill data plane": lambda: self._kill("dataplane"),
            "kill engine": lambda: self._kill("engine"),
            "kill etcd": lambda: self._kill("etcd"),
            "etcd loses its data": self._wipe_etcd,
            "etcd goes back": self._rewind_etcd,
            "etcd compacts": self._compact,
            "stop": self._stop,
            "partition": self._cut,
            "reads stuck": self._stick,
            "break connection": self._break,
            "frayed network": self._fray,
            "slow network": self._slow,
            "slow process": self._slow_process,
            "wall clock jumps": self._jump,
        }
        names = list(kinds)
        # Some runs have all faults, others only a few of them, and those often.
        chosen = names if self.seeded.random() < 0.3 else self.seeded.sample(names, self.seeded.randint(1, 4))
        self._kinds = {name: kinds[name] for name in names if name in chosen}
        # Drawn beside the others, so that seeds that once failed without this mean what they meant.
        beside = random.Random()
        beside.setstate(self.seeded.getstate())
        if beside.random() < 0.2:
            self._kinds["reader begins anew"] = self._begin_anew
        self._etcd_before: EtcdStore | None = None

    def begin(self) -> None:
        """Start making them."""
        self._later()

    def end(self) -> None:
        """Heal everything: the network, stopped and slow processes. What is down comes up."""
        cluster = self.cluster
        cluster.network.heal()
        cluster.fabric.stuck.clear()
        cluster.fabric.slow_seconds = 0.0
        for part in cluster.parts:
            if part.process is None:
                cluster.start_part(part)
            else:
                part.process.stopped_until = 0.0
                part.process.slowness = 1.0

    def _later(self) -> None:
        wait = self.seeded.expovariate(1.0) * self.pause_s
        if self.cluster.loop.now + wait < self.until:
            self.cluster.network.later(wait, self._next)

    def _next(self) -> None:
        name = self.seeded.choice(list(self._kinds))
        told = self._kinds[name]()
        if told:
            self.counts[name] += 1
            self.cluster.trace.say("FAULT", name, on=told)
        self._later()

    def _running(self, what: str = "") -> list[Part]:
        return [part for part in self.cluster.parts if part.process is not None and what in part.name]

    def _kill(self, what: str) -> str:
        parts = self._running(what)
        if not parts:
            return ""
        part = self.seeded.choice(parts)
        down = self.seeded.choice(DOWN_SECONDS)
        self.cluster.kill(part, down)
        return f"{part.name} for {down} s"

    def _wipe_etcd(self) -> str:
        # Clusters derive their id from their configuration: a wiped one may have the same.
        same = self.seeded.random() < 0.5
        self.cluster.store = EtcdStore(self.cluster.store.cluster_id + (not same))
        return self._kill("etcd")

    def _rewind_etcd(self) -> str:
        """Restore a snapshot taken at the first such fault."""
        if self._etcd_before is None:
            self._etcd_before = self.cluster.store.copied()
            return "snapshot taken"
        self.cluster.store = self._etcd_before.copied()
        return self._kill("etcd")

    def _compact(self) -> str:
        self.cluster.store.compact()
        return "etcd"

    def _stop(self) -> str:
        parts = self._running()
        part, seconds = self.seeded.choice(parts), self.seeded.choice(STOP_SECONDS)
        assert part.process is not None
        self.cluster.network.stop(part.process, seconds)
        return f"{part.name} for {seconds} s"

    def _cut(self) -> str:
        places = ["etcd", *(worker.name for worker in self.cluster.workers)]
        one, other = self.seeded.sample(places, 2)
        seconds = self.seeded.choice(CUT_SECONDS)
        self.cluster.network.cut(one, other, seconds)
        return f"{one} and {other} for {seconds} s"

    def _stick(self) -> str:
        one, other = self.seeded.sample([worker.name for worker in self.cluster.workers], 2)
        seconds = self.seeded.choice(CUT_SECONDS)
        stuck = self.cluster.fabric.stuck
        stuck.add((one, other))
        self.cluster.network.later(seconds, lambda: stuck.discard((one, other)))
        return f"{one} from {other} for {seconds} s"

    def _begin_anew(self) -> str:
        """An engine, a control or both are killed while their reads are stuck, and are back before those have ended."""
        stuck = self._stick()
        reader = stuck.partition(" ")[0]
        for what in self.seeded.choice((("engine",), ("control",), ("engine", "control"))):
            for part in self._running(f"{reader}/{what}"):
                self.cluster.network.later(0.2, partial(self._kill_before_the_end, part))
        return stuck

    def _kill_before_the_end(self, part: Part) -> None:
        if self.cluster.loop.now < self.until:
            self.cluster.kill(part, DOWN_SECONDS[0])

    def _break(self) -> str:
        connections = self.cluster.network.connections()
        if not connections:
            return ""
        connection = self.seeded.choice(connections)
        self.cluster.network.break_connection(connection, "broken")
        return f"{connection.client.name} to {connection.server.name}"

    def _fray(self) -> str:
        network = self.cluster.network
        network.fray_chance = self.seeded.choice((0.0, 0.01, 0.1))
        return f"{network.fray_chance} of messages"

    def _slow(self) -> str:
        network, fabric = self.cluster.network, self.cluster.fabric
        network.spike_chance, network.spike_seconds = self.seeded.choice(
            ((0.0, 0.0), (0.1, 0.3), (0.5, 0.05), (0.05, 1.5))
        )
        fabric.slow_seconds = self.seeded.choice((0.0, 0.01, 0.1))
        return f"{network.spike_chance} up to {network.spike_seconds} s, reads up to {fabric.slow_seconds} s"

    def _slow_process(self) -> str:
        part = self.seeded.choice(self._running())
        assert part.process is not None
        part.process.slowness = self.seeded.choice((1.0, 10.0, 200.0))
        return f"{part.name} {part.process.slowness} times"

    def _jump(self) -> str:
        worker = self.seeded.choice(self.cluster.workers)
        worker.clock.wall_offset += self.seeded.choice((-3600.0, -5.0, 5.0, 3600.0))
        return worker.name
