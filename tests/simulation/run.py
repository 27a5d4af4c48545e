"""One run: a seed makes a cluster, a load and faults; the outcome says whether anything was wrong."""

import asyncio
import contextlib
import gc
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from kvferry.core.errors import KvferryError, NotReady
from tests.simulation import doors
from tests.simulation.attaching import attach
from tests.simulation.checks import Checks
from tests.simulation.cluster import Cluster, Worker
from tests.simulation.fabric import Fabric
from tests.simulation.faults import Faults
from tests.simulation.memory import GROUP, PROBE_DESTINATION, PROBE_SOURCE, Published
from tests.simulation.network import Network
from tests.simulation.trace import Trace
from tests.simulation.virtual_loop import CURRENT, VirtualLoop

CALM_SECONDS = 1.5
"""Before the first fault: the cluster forms."""
RECOVER_SECONDS = 10.0
"""After the last fault every pair must work again within this."""
REST_SECONDS = 6.0
"""Longer than every lease and deadline of the load."""


class Violation(Exception):
    """An invariant was broken."""


@dataclass(eq=False)
class Outcome:
    """What a run came to."""

    seed: int
    failure: str = ""
    steps: int = 0
    messages: int = 0
    virtual_seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    transfers: Counter[str] = field(default_factory=Counter)
    publications: Counter[str] = field(default_factory=Counter)
    rollovers: int = 0


class Simulation:
    """A run of one seed."""

    def __init__(self, seed: int, trace: Trace) -> None:
        self.outcome = Outcome(seed)
        self.violations: list[str] = []
        seeded = random.Random(seed)

        def chance() -> random.Random:
            return random.Random(seeded.getrandbits(64))

        self._trace = trace
        self._seeded = chance()
        self.loop = VirtualLoop(chance())
        trace.clock = lambda: self.loop.now
        self.network = Network(self.loop, chance(), trace)
        self._secrets = chance()
        fabric = Fabric(self.network, chance(), self._violated)
        self.cluster = Cluster(self.loop, self.network, fabric, chance(), trace, self._violated)
        seconds = self._seeded.choice((3.0, 5.0, 8.0))
        pause = self._seeded.choice((0.15, 0.5, 1.5))
        self._faults = Faults(self.cluster, chance(), CALM_SECONDS + seconds, pause)
        self._faults_until = CALM_SECONDS + seconds
        self._checks = Checks(self.cluster, self._violated)
        self.loop.after_step = self._after_step

    def run(self) -> Outcome:
        """Run it."""
        outcome = self.outcome
        with self._logs(), doors.closed(self.loop, self.network, self._secrets):
            try:
                self.loop.run_until_complete(self._main())
            except (Violation, AssertionError) as failure:
                outcome.failure = str(failure) or repr(failure)
                self._trace.say("FAILED", outcome.failure)
            self._sum_up()
        self.loop.close()
        return outcome

    async def _main(self) -> None:
        self.cluster.start()
        self.network.later(CALM_SECONDS, self._faults.begin)
        await asyncio.sleep(self._faults_until)
        self._trace.say("world", "faults end")
        self._faults.end()
        self.cluster.active = False
        healed = self.loop.now
        for worker in self.cluster.workers:
            worker.memory.write((PROBE_SOURCE,), self._seeded)
        for source in self.cluster.workers:
            for destination in self.cluster.workers:
                if source.load.publishes and destination.load.pulls and source is not destination:
                    await self._probe(source, destination, healed + RECOVER_SECONDS)
        self._trace.say("world", "rest")
        await asyncio.sleep(REST_SECONDS)
        self._checks.at_rest()
        await asyncio.sleep(0)

    async def _probe(self, source: Worker, destination: Worker, until: float) -> None:
        """A new transfer succeeds."""
        last = "nothing was tried"
        number = 0
        while self.loop.now < until:
            number += 1
            try:
                await self._probe_once(source, destination, f"probe-{source.name}-{destination.name}-{number}")
            except KvferryError as error:
                last = f"{error.reason.value}: {error.message}"
                self._trace.say("world", "probe failed", source=source.name, destination=destination.name, why=last)
                await asyncio.sleep(0.1)
            else:
                return
        self._violated(
            f"{destination.name} cannot pull from {source.name} {RECOVER_SECONDS:g} s after the last fault: {last}"
        )
        await asyncio.sleep(0)

    async def _probe_once(self, source: Worker, destination: Worker, request: str) -> None:
        if not (source.engine and source.engine.client and destination.engine and destination.engine.client):
            raise NotReady("an engine has no session with its control")
        publisher, puller = source.engine.client, destination.engine.client
        for worker, client in ((source, publisher), (destination, puller)):
            if len(attach(client, worker.memory.layout, worker.planes)) < len(worker.memory.layout.ranks):
                raise NotReady(f"a pool of {worker.name} cannot be mapped")
        memory = source.memory
        content = Published(source.name, memory.layout, (PROBE_SOURCE,), 1, memory.snapshot())
        made = await self._in(source, publisher.publish({GROUP: [PROBE_SOURCE]}, 1, 3.0, 1, request))
        try:
            await self._in(destination, puller.pull(made.handle, {GROUP: [PROBE_DESTINATION]}, 1.5, request))
            if wrong := destination.memory.wrong_bytes((PROBE_DESTINATION,), content, destination.memory.pools):
                self._violated(f"a probe brought {wrong} wrong bytes")
        finally:
            with contextlib.suppress(KvferryError):
                await self._in(source, publisher.release(made))

    async def _in(self, worker: Worker, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in a worker's engine."""
        process = worker.part("engine").process
        assert process is not None
        return await self.loop.start(process, work)

    def _violated(self, what: str) -> None:
        """Note what was broken; the run ends after the step, since code in between might catch an exception."""
        self.violations.append(what)
        self._trace.say("VIOLATION", what)

    def _after_step(self) -> None:
        self._checks.after_step()
        if self.violations:
            raise Violation(self.violations[0])

    def _sum_up(self) -> None:
        outcome, cluster = self.outcome, self.cluster
        outcome.steps, outcome.virtual_seconds = self.loop.steps, self.loop.now
        outcome.messages = self.network.message_count
        outcome.faults, outcome.transfers = self._faults.counts, cluster.router.outcomes
        outcome.publications = cluster.router.publications
        outcome.rollovers = sum(life.executor.rollovers for w in cluster.workers for life in w.planes.values())

    @contextlib.contextmanager
    def _logs(self) -> Iterator[None]:
        """Product code's log goes to the trace; an error in it is a defect."""

        def take(_logger: object, method: str, event: structlog.typing.EventDict) -> str:
            process = CURRENT.get()
            what = str(event.pop("event"))
            self._trace.say(process.name if process else "world", f"[{method}] {what}", **event)
            if method in ("error", "critical", "exception"):
                error = sys.exc_info()[1]
                self.loop.defect(f"logged {what!r}: {error!r}")
            raise structlog.DropEvent

        level = 10 if self._trace.wanted else 40
        structlog.configure(
            processors=[take],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            cache_logger_on_first_use=False,
        )
        yield


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Collect garbage only afterwards, and in silence: what was cut off in the middle has nothing to say."""
    gc.disable()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            structlog.configure(processors=[_drop])
            gc.collect()
    finally:
        structlog.reset_defaults()
        sys.unraisablehook = hook
        gc.enable()


def _drop(_logger: object, _method: str, _event: structlog.typing.EventDict) -> str:
    raise structlog.DropEvent


def simulate(seed: int, write: Callable[[str], None] | None = None) -> Outcome:
    """Run a seed; ``write`` gets the trace."""
    with _uncollected():
        return Simulation(seed, Trace(write)).run()
