"""``bench control``: many small pulls at once over a warm pair, and what the control plane costs."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from kvferry.bench.ferry_pair import DESTINATION, FerryEngines, FerryPair
from kvferry.bench.figures import Timing
from kvferry.bench.processes import CpuSample, CpuUse
from kvferry.bench.round_trips import RoundTrips
from kvferry.bench.workload import Workload, check_workload
from kvferry.core.errors import ConfigInvalid
from kvferry.launch.cluster import LocalCluster

SEED = 22
ENGINE = "engine_client"
SOURCE_CONTROL = "source_control"
DESTINATION_CONTROL = "destination_control"
SOURCE_DATA_PLANE = "source_data_plane"
DESTINATION_DATA_PLANE = "destination_data_plane"
IDLE_S = 5.0
REST_S = 3.0
"""Idle processes are looked at this long after the last pull."""
ROUND_TRIPS = 300
BUSY_SHARE = 0.85
"""A process that uses this much of a core, or all together of all cores, is what bounds the rate."""


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """``in_flight`` pulls of ``total_bytes`` each, in blocks of ``block_bytes``, for ``seconds``."""

    device: str
    in_flight: int
    total_bytes: int
    block_bytes: int
    seconds: float

    @property
    def workload(self) -> Workload:
        """All pulls in flight together; each takes its own part of the blocks."""
        together = self.in_flight * self.total_bytes
        return Workload(self.block_bytes, together, 2 * together, SEED)

    def check(self) -> None:
        """Raise ConfigInvalid for what cannot be measured."""
        check_workload(self.block_bytes, self.total_bytes)
        if self.in_flight < 1:
            raise ConfigInvalid.of_field("in_flight", self.in_flight, "must be at least 1")


@dataclass(frozen=True, slots=True)
class Rate:
    """What was reached with so many pulls in flight."""

    in_flight: int
    timing: Timing
    cpu: CpuUse

    @property
    def pulls_per_s(self) -> float:
        """Over the whole time."""
        return len(self.timing.rounds_s) / self.cpu.wall_s

    @property
    def bound(self) -> str:
        """What keeps the rate from being higher: a process, the cores, or nothing but the time of a pull."""
        busiest = max(self.cpu.used_s, key=self.cpu.share_of_core)
        if self.cpu.share_of_core(busiest) >= BUSY_SHARE:
            return busiest
        cores = len(os.sched_getaffinity(0))
        return "cores" if self.cpu.total_s / self.cpu.wall_s >= BUSY_SHARE * cores else "round trips"

    def to_dict(self) -> dict[str, object]:
        """The rate for JSON."""
        pulls = len(self.timing.rounds_s)
        return {
            "pulls_per_s": self.pulls_per_s,
            "pulls": pulls,
            "p50_s": self.timing.quantile_s(0.5),
            "p99_s": self.timing.quantile_s(0.99),
            "cpu_s_per_pull": {name: seconds / pulls for name, seconds in self.cpu.used_s.items()},
            "cores_used": {name: self.cpu.share_of_core(name) for name in self.cpu.used_s},
            "cores": len(os.sched_getaffinity(0)),
            "bound_by": self.bound,
        }


@dataclass(frozen=True, slots=True)
class ControlResult:
    """Everything of one run."""

    settings: ControlSettings
    rates: Sequence[Rate]
    round_trips: Mapping[str, Timing]
    idle: CpuUse

    def to_rows(self) -> list[dict[str, object]]:
        """One JSON object for each rate, for each baseline, and for the idle processes."""
        settings = self.settings
        pulled = {"device": settings.device, "total_bytes": settings.total_bytes, "block_bytes": settings.block_bytes}
        rows: list[dict[str, object]] = [
            {"case": "pulls", **pulled, "in_flight": rate.in_flight, **rate.to_dict()} for rate in self.rates
        ]
        rows += [
            {"case": name, "in_flight": 1, "p50_s": timing.quantile_s(0.5), "p99_s": timing.quantile_s(0.99)}
            for name, timing in self.round_trips.items()
        ]
        shares = {name: self.idle.share_of_core(name) for name in self.idle.used_s}
        return [*rows, {"case": "idle", "seconds": self.idle.wall_s, "cores_used": shares}]


async def measure_control(settings: ControlSettings, on_stage: Callable[[str], None]) -> ControlResult:
    """Measure one pull at a time, then many, then none; every pull's blocks are verified first.

    Raises:
        ConfigInvalid: a size cannot be measured.
        TransportFailed: a byte was wrong.
        ProcessError: a process failed.
    """
    settings.check()
    workload = settings.workload
    async with AsyncExitStack() as stack:
        on_stage("starting two workers")
        cluster = await stack.enter_async_context(LocalCluster())
        pair = await FerryPair.start(cluster, settings.device, workload.pool_bytes)
        engines = await stack.enter_async_context(FerryEngines(pair, settings.block_bytes))
        trips = await stack.enter_async_context(RoundTrips(pair.destination.endpoint, DESTINATION))
        pulls = await _prepared(engines, workload, settings.in_flight)
        pids = _pids(pair)
        on_stage("one pull at a time")
        await _rate(pulls[:1], pids, settings.seconds / 4)
        rates = [await _rate(pulls[:1], pids, settings.seconds / 2)]
        on_stage("round trips")
        round_trips = {name: await _timed(call) for name, call in trips.calls.items()}
        on_stage(f"{settings.in_flight} pulls in flight")
        await _rate(pulls, pids, settings.seconds / 4)
        rates.append(await _rate(pulls, pids, settings.seconds))
        on_stage("idle")
        await asyncio.sleep(REST_S)
        before = CpuSample.of(pids)
        await asyncio.sleep(IDLE_S)
        idle = CpuSample.of(pids).since(before)
    return ControlResult(settings, rates, round_trips, idle)


Call = Callable[[], Awaitable[object]]


async def _prepared(engines: FerryEngines, workload: Workload, count: int) -> list[Call]:
    """``count`` pulls, each of a publication of its own into blocks of its own; together they delivered every byte."""
    await engines.fill(SEED)
    each = workload.block_count // count
    sources, destinations = workload.source_blocks().tolist(), workload.destination_blocks().tolist()
    parts = [slice(start, start + each) for start in range(0, workload.block_count, each)]
    handles = [await engines.publish_blocks(sources[part]) for part in parts]
    wanted = [(handle, destinations[part]) for handle, part in zip(handles, parts, strict=True)]
    await engines.pull_all_verified(wanted, workload, SEED)
    # To a reader that is known by now, as it is between workers that serve.
    wanted = [(await engines.publish_blocks(sources[part]), destinations[part]) for part in parts]

    def call_of(handle: bytes, blocks: list[int]) -> Call:
        return lambda: engines.pull(handle, blocks)

    return [call_of(handle, blocks) for handle, blocks in wanted]


async def _rate(pulls: Sequence[Call], pids: Mapping[str, int], seconds: float) -> Rate:
    """Repeat each pull until the time is over; the next of each begins when the last has ended."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def repeat(pull: Call) -> None:
        while (started := time.perf_counter()) < until:
            await pull()
            times.append(time.perf_counter() - started)

    before = CpuSample.of(pids)
    async with asyncio.TaskGroup() as group:
        for pull in pulls:
            group.create_task(repeat(pull))
    return Rate(len(pulls), Timing(tuple(times)), CpuSample.of(pids).since(before))


async def _timed(call: Call) -> Timing:
    times = []
    for _ in range(ROUND_TRIPS):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return Timing(tuple(times))


def _pids(pair: FerryPair) -> dict[str, int]:
    return {
        ENGINE: os.getpid(),
        SOURCE_CONTROL: pair.source.control.pid,
        DESTINATION_CONTROL: pair.destination.control.pid,
        SOURCE_DATA_PLANE: pair.source.data_planes[0].pid,
        DESTINATION_DATA_PLANE: pair.destination.data_planes[0].pid,
    }
