"""``bench latency``: a warm pull against gRPC calls to the same control and against its bare messages, in turns."""

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from kvferry.bench.ferry_pair import DESTINATION, FerryEngines, FerryPair
from kvferry.bench.figures import Timing
from kvferry.bench.floor import FLOORS, Floors
from kvferry.bench.round_trips import GET_WORKER, HEALTH_CHECK, RoundTrips
from kvferry.bench.workload import Workload, check_workload
from kvferry.launch.cluster import LocalCluster

POOL_BYTES_MIN = 64 << 20
SEED = 21
WARM_ROUNDS = 50
PULL = "pull"


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """Times of each call, round by round."""

    block_bytes: int
    total_bytes: int
    timings: dict[str, Timing]

    def ratio(self, method: str) -> float:
        """Median time of a pull over that of ``method``."""
        return self.timings[PULL].ratio_to(self.timings[method])

    @property
    def p99_to_p50(self) -> float:
        """How much longer a slow pull takes than one in the middle."""
        return self.timings[PULL].quantile_s(0.99) / self.timings[PULL].quantile_s(0.5)

    def to_dict(self) -> dict[str, object]:
        """The result for JSON."""
        figures = {
            method: {
                "p50_s": timing.quantile_s(0.5),
                "p99_s": timing.quantile_s(0.99),
                "min_s": min(timing.rounds_s),
                "max_s": max(timing.rounds_s),
            }
            for method, timing in self.timings.items()
        }
        return {
            "block_bytes": self.block_bytes,
            "total_bytes": self.total_bytes,
            "rounds": len(self.timings[PULL].rounds_s),
            **figures,
            "p99_to_p50": self.p99_to_p50,
            "ratio_p50_to_health_check": self.ratio(HEALTH_CHECK),
            "ratio_p50_to_get_worker": self.ratio(GET_WORKER),
            **{f"ratio_p50_to_{floor}": self.ratio(floor) for floor in FLOORS},
        }


async def measure_latency(
    device: str, repeats: int, on_round: Callable[[], None], *, total_bytes: int = 4096, block_bytes: int = 4096
) -> LatencyResult:
    """Measure ``repeats`` rounds after some that warm everything; the first pull is verified.

    Raises:
        ConfigInvalid: a size cannot be measured.
        TransportFailed: a byte was wrong.
        ProcessError: a process failed.
    """
    check_workload(block_bytes, total_bytes)
    pool_bytes = max(POOL_BYTES_MIN, 2 * total_bytes)
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(LocalCluster())
        pair = await FerryPair.start(cluster, device, pool_bytes)
        engines = await stack.enter_async_context(FerryEngines(pair, block_bytes))
        workload = Workload(block_bytes, total_bytes, pool_bytes, SEED)
        await engines.fill(SEED)
        handle = await engines.publish(workload)
        await engines.pull_verified(handle, workload, SEED)
        handle = await engines.publish_again()
        trips = await stack.enter_async_context(RoundTrips(pair.destination.endpoint, DESTINATION))
        floors = await stack.enter_async_context(Floors(cluster.directory, workload.block_count))
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            PULL: partial(engines.pull, handle, workload.destination_blocks().tolist()),
            **trips.calls,
            **floors.calls,
        }
        for _ in range(WARM_ROUNDS):
            for call in calls.values():
                await call()
        rounds: dict[str, list[float]] = {method: [] for method in calls}
        for _ in range(repeats):
            for method, call in calls.items():
                rounds[method].append(await _timed(call))
            on_round()
    timings = {method: Timing(tuple(seconds)) for method, seconds in rounds.items()}
    return LatencyResult(block_bytes, total_bytes, timings)


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started
