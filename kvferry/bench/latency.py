"""``bench latency``: a warm pull of one block against unary gRPC calls to the same control, in turns."""

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from kvferry.bench.ferry_pair import DESTINATION, FerryEngines, FerryPair
from kvferry.bench.figures import Timing
from kvferry.bench.round_trips import GET_WORKER, HEALTH_CHECK, RoundTrips
from kvferry.bench.workload import Workload
from kvferry.launch.cluster import LocalCluster

BLOCK_BYTES = 4096
POOL_BYTES = 64 << 20
SEED = 21
WARM_ROUNDS = 50
PULL = "pull"


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """Times of each call, round by round."""

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
            "block_bytes": BLOCK_BYTES,
            "rounds": len(self.timings[PULL].rounds_s),
            **figures,
            "p99_to_p50": self.p99_to_p50,
            "ratio_p50_to_health_check": self.ratio(HEALTH_CHECK),
            "ratio_p50_to_get_worker": self.ratio(GET_WORKER),
        }


async def measure_latency(device: str, repeats: int, on_round: Callable[[], None]) -> LatencyResult:
    """Measure ``repeats`` rounds after some that warm everything; the first pull is verified.

    Raises:
        TransportFailed: a byte was wrong.
        ProcessError: a process failed.
    """
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(LocalCluster())
        pair = await FerryPair.start(cluster, device, POOL_BYTES)
        engines = await stack.enter_async_context(FerryEngines(pair, BLOCK_BYTES))
        workload = Workload(BLOCK_BYTES, BLOCK_BYTES, POOL_BYTES, SEED)
        await engines.fill(SEED)
        handle = await engines.publish(workload)
        await engines.pull_verified(handle, workload, SEED)
        trips = await stack.enter_async_context(RoundTrips(pair.destination.endpoint, DESTINATION))
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            PULL: partial(engines.pull, handle, workload.destination_blocks().tolist()),
            **trips.calls,
        }
        for _ in range(WARM_ROUNDS):
            for call in calls.values():
                await call()
        rounds: dict[str, list[float]] = {method: [] for method in calls}
        for _ in range(repeats):
            for method, call in calls.items():
                rounds[method].append(await _timed(call))
            on_round()
    return LatencyResult({method: Timing(tuple(seconds)) for method, seconds in rounds.items()})


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started
