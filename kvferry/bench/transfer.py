"""``bench transfer``: a whole kvferry pull against raw NIXL with the same descriptors, in turns."""

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from kvferry.bench.ferry_pair import FerryEngines, FerryPair
from kvferry.bench.figures import Timing
from kvferry.bench.raw_pair import RawPair
from kvferry.bench.workload import Workload, check_workload
from kvferry.launch.cluster import LocalCluster
from kvferry.sdk.results import TransferResult

SEED = 20
RAW_DEFAULT = "raw_default"
"""NIXL with its own defaults: a progress thread."""
RAW_TUNED = "raw_tuned"
"""NIXL without a progress thread, as kvferry's data plane uses it."""
KVFERRY = "kvferry"
METHODS = (RAW_DEFAULT, RAW_TUNED, KVFERRY)
STAGES = ("negotiate_s", "queue_s", "read_s", "verify_s", "total_s")


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """What is measured: every block size with every total, ``repeats`` rounds each."""

    device: str
    block_sizes: tuple[int, ...]
    total_sizes: tuple[int, ...]
    repeats: int

    @property
    def pool_bytes(self) -> int:
        """Size of every pool."""
        return max(self.total_sizes)

    def workloads(self, block_bytes: int) -> list[Workload]:
        """The cases of one block size."""
        return [Workload(block_bytes, total, self.pool_bytes, SEED) for total in self.total_sizes]

    def check(self) -> None:
        """Raise ConfigInvalid for sizes that cannot be measured."""
        for block_bytes in self.block_sizes:
            for total in (*self.total_sizes, self.pool_bytes):
                check_workload(block_bytes, total)


@dataclass(frozen=True, slots=True)
class TransferCase:
    """One case: times of each method, and where kvferry's went."""

    workload: Workload
    timings: dict[str, Timing]
    stages: dict[str, Timing]
    """kvferry's own figures by stage."""

    def ratio(self, method: str) -> float:
        """Time of a kvferry pull over time of ``method``."""
        return self.timings[KVFERRY].ratio_to(self.timings[method])

    def to_dict(self) -> dict[str, object]:
        """The case for JSON."""
        total = self.workload.total_bytes
        return {
            "block_bytes": self.workload.block_bytes,
            "total_bytes": total,
            "descriptors": self.workload.block_count,
            **{
                method: {
                    "median_s": timing.median_s,
                    "min_s": min(timing.rounds_s),
                    "max_s": max(timing.rounds_s),
                    "median_gbytes_per_s": total / timing.median_s / 1e9,
                }
                for method, timing in self.timings.items()
            },
            "kvferry_stages_median_s": {stage: timing.median_s for stage, timing in self.stages.items()},
            "ratio_to_raw_default": self.ratio(RAW_DEFAULT),
            "ratio_to_raw_tuned": self.ratio(RAW_TUNED),
        }


async def measure_transfers(settings: TransferSettings, on_stage: Callable[[str], None]) -> list[TransferCase]:
    """Measure every case; all processes have ended when this returns.

    Raises:
        ConfigInvalid: a size cannot be measured.
        TransportFailed: a byte was wrong.
        ProcessError: a process failed.
    """
    settings.check()
    cases = []
    async with AsyncExitStack() as stack:
        on_stage("starting two workers and two pairs of raw NIXL processes")
        cluster = await stack.enter_async_context(LocalCluster())
        pair = await FerryPair.start(cluster, settings.device, settings.pool_bytes)
        raws = {}
        for method in (RAW_DEFAULT, RAW_TUNED):
            raws[method] = await RawPair.start(
                method,
                settings.device,
                settings.pool_bytes,
                SEED,
                cluster.directory,
                default_config=method == RAW_DEFAULT,
            )
            stack.push_async_callback(raws[method].stop)
        for block_bytes in settings.block_sizes:
            async with FerryEngines(pair, block_bytes) as engines:
                await engines.fill(SEED)
                for workload in settings.workloads(block_bytes):
                    on_stage(f"{workload.block_count} blocks of {block_bytes} bytes")
                    cases.append(await _measure(workload, raws, engines, settings.repeats))
    return cases


async def _measure(workload: Workload, raws: dict[str, RawPair], engines: FerryEngines, repeats: int) -> TransferCase:
    """Verify every method once, which also warms it, then time them in turns."""
    handle = await engines.publish(workload)
    blocks = workload.destination_blocks().tolist()
    for raw in raws.values():
        await raw.read_verified(workload, SEED)
    await engines.pull_verified(handle, workload, SEED)
    rounds: dict[str, list[float]] = {method: [] for method in METHODS}
    pulls: list[TransferResult] = []
    for _ in range(repeats):
        for method, raw in raws.items():
            rounds[method].append(await raw.read(workload))
        started = time.perf_counter()
        pulls.append(await engines.pull(handle, blocks))
        rounds[KVFERRY].append(time.perf_counter() - started)
    await engines.release()
    return TransferCase(
        workload,
        {method: Timing(tuple(seconds)) for method, seconds in rounds.items()},
        _stages(pulls),
    )


def _stages(pulls: Sequence[TransferResult]) -> dict[str, Timing]:
    return {stage: Timing(tuple(getattr(pull, stage) for pull in pulls)) for stage in STAGES}
