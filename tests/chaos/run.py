"""A chaos run: start everything, break it again and again under load, and see what is left in the end."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.census import Holding, census, quiet
from tests.chaos.contents import BLOCK_COUNT
from tests.chaos.engine_process import LATE
from tests.chaos.faults import Fault, Scene
from tests.chaos.load import Load
from tests.chaos.probes import recovered
from tests.chaos.report import Injected, Report
from tests.chaos.schedule import one_of_each_kind, rounds
from tests.chaos.site import Site, running_site

BACKEND_ABORT = "Fatal: unexpected error"
"""What UCX says last."""
WARM_S = 4.0
QUIET_TIMEOUT_S = 40.0
GAP_S = 0.5
"""Of undisturbed load between two faults."""
SLACK = {"descriptors": 16, "threads": 6, "pool_mappings": 0}
"""Growth that is none: pools of threads grow to their bounds when they are needed first, and a reader agent keeps
connections of up to four peers that it has forgotten, two of each and as many at the source."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and how hard."""

    seed: int
    seconds: float
    """From the first fault to the last."""
    hold_s: float
    cancellations: int
    short: bool = False
    """One fault of each kind, instead of as many as there is time for."""
    directory: Path | None = None


async def chaos(plan: Plan, tell: Callable[[str], None] = lambda _line: None) -> Report:
    """Run a plan; ``tell`` hears of every fault.

    Raises:
        ConfigInvalid: the machine does not let us make network namespaces.
    """
    report = Report(plan.seed)
    draw = random.Random(plan.seed)  # noqa: S311 - chaos is to be repeated, not to be secret
    faults = one_of_each_kind(draw, plan.cancellations) if plan.short else rounds(draw, plan.cancellations)
    began = time.monotonic()
    async with running_site(plan.seed, directory=plan.directory) as site:
        await _warm_up(site, draw.getrandbits(32))
        before = census(site)
        load = Load(site, draw.getrandbits(32))
        report.tally = load.tally
        scene = Scene(site, load, draw, plan.hold_s)
        running = site.tasks.create_task(load.run())
        await _break(scene, faults, plan, report, began, tell)
        load.stop()
        await running
        report.leaks = await _leaks(site, before)
        report.backend_aborts = [crash for crash in site.crashes if BACKEND_ABORT in crash]
        report.crashes = [crash for crash in site.crashes if BACKEND_ABORT not in crash]
        report.late = list(_late(site))
        report.log_defects = _defects(site)
    report.seconds = time.monotonic() - began
    return report


async def _warm_up(site: Site, seed: int) -> None:
    """Have every pair pull, so that every connection and thread is there that will stay."""
    load = Load(site, seed)
    running = site.tasks.create_task(load.run())
    await recovered(site, time.monotonic())
    await asyncio.sleep(WARM_S)
    load.stop()
    await running
    await quiet(site, QUIET_TIMEOUT_S)


async def _break(
    scene: Scene, faults: Iterable[Fault], plan: Plan, report: Report, began: float, tell: Callable[[str], None]
) -> None:
    until = time.monotonic() + plan.seconds
    for fault in faults:
        if time.monotonic() > until:
            return
        failed_before = Counter(scene.load.tally.failed)
        since = time.monotonic()
        await fault.inject(scene)
        await fault.last(scene)
        await fault.heal(scene)
        healed = time.monotonic()
        recovery_s, slowest = await recovered(scene.site, healed)
        injected = Injected(
            name=fault.name,
            kind=fault.kind,
            at_s=round(since - began, 1),
            lasted_s=round(healed - since, 2),
            recovery_s=round(recovery_s, 3),
            slowest_pair=slowest,
            failed=dict(scene.load.tally.failed - failed_before),
        )
        report.faults.append(injected)
        tell(f"{injected.at_s:6.1f} s  {fault.name}: recovered after {recovery_s:.2f} s, failed {injected.failed}")
        await asyncio.sleep(GAP_S)


async def _leaks(site: Site, before: dict[str, Holding]) -> list[str]:
    """What is still held once all is quiet, and what every process holds beyond what it held before."""
    left = await quiet(site, QUIET_TIMEOUT_S)
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    grown = _grown(before, census(site))
    while grown and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        grown = _grown(before, census(site))
    for name in site.stations:
        free = (await site.engines[name].figures())["free_blocks"]
        if free != BLOCK_COUNT:
            left.append(f"engine of {name}: {BLOCK_COUNT - free} blocks are not free")
    return left + grown


def _grown(before: dict[str, Holding], after: dict[str, Holding]) -> list[str]:
    found = []
    for name, now in after.items():
        then, counts = before[name].to_dict(), now.to_dict()
        found += [
            f"{name}: {what} {then[what]} before, {counts[what]} after, new: {_new(before[name], now)}"
            for what, slack in SLACK.items()
            if counts[what] > then[what] + slack
        ]
    return found


def _new(before: Holding, after: Holding) -> dict[str, int]:
    return dict(Counter(after.kinds) - Counter(before.kinds))


def _late(site: Site) -> Iterator[dict[str, Any]]:
    """What engines, also those that were killed since, found in blocks that no byte could arrive in any more."""
    for name in site.stations:
        for line in site.processes[f"{name}.engine"].child().log_path.read_text(errors="replace").splitlines():
            if LATE in line:
                yield {"engine": name, **json.loads(line)}


def _defects(site: Site) -> list[str]:
    """Tracebacks that processes wrote: a typed error has none."""
    found = []
    for managed in site.processes.values():
        text = managed.child().log_path.read_text(errors="replace")
        if count := text.count("Traceback (most recent call last)"):
            start = text.index("Traceback (most recent call last)")
            found.append(f"{managed.name}: {count} tracebacks, the first: {text[start : start + 1500]}")
    return found
