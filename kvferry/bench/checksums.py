"""``bench checksums``: what summing costs against copying the same bytes, and what comparing adds to a pull."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np

from kvferry.bench.ferry_pair import PULL_TIMEOUT_S, FerryEngines, FerryPair
from kvferry.bench.figures import Timing
from kvferry.bench.summed_memory import SummedDevice, SummedHost, SummedMemory
from kvferry.bench.workload import GROUP
from kvferry.core.dense import NHD, DenseModel, dense_layout
from kvferry.core.errors import ConfigInvalid, TransportFailed
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.launch.cluster import LocalCluster

LAYERS = 8
BLOCK_BYTES = LAYERS * 2 * 8 * 16 * 128 * 2
"""8 layers, K and V, 8 heads of 128, 16 tokens, bfloat16."""
SEED = 5
WARM_ROUNDS = 2
COPY = "copy"
DIGEST = "digest"
PUBLISH = "publish"
PULL_OFF = "pull off"


@dataclass(frozen=True, slots=True)
class ChecksumResult:
    """Times of each method, round by round, for ``total_bytes`` each."""

    total_bytes: int
    device: str
    timings: dict[str, Timing]

    def to_dict(self) -> dict[str, object]:
        """The result for JSON."""
        return {
            "device": self.device,
            "total_bytes": self.total_bytes,
            "rounds": len(self.timings[COPY].rounds_s),
            "gbytes_per_s": {name: timing.rates(self.total_bytes) for name, timing in self.timings.items()},
            "digest_to_copy": self.timings[DIGEST].ratio_to(self.timings[COPY]),
            "pull_to_pull_off": {
                name: timing.ratio_to(self.timings[PULL_OFF])
                for name, timing in self.timings.items()
                if name.startswith("pull")
            },
        }


def summed_layout(pool_bytes: int) -> WorkerLayout:
    """One rank's part of a model, in pieces of 32 KiB."""
    model = DenseModel("bench-checksums", LAYERS, 8, 128, 16, ElementType.BFLOAT16)
    return dense_layout(model, pool_bytes // BLOCK_BYTES, order=NHD, group=GROUP)


async def measure_checksums(
    device: str, total_bytes: int, threads: int, repeats: int, on_round: Callable[[], None]
) -> ChecksumResult:
    """Measure ``repeats`` rounds, each with each method once.

    Raises:
        ConfigInvalid: ``total_bytes`` is no multiple of a block.
        TransportFailed: a pull did not compare what it should.
        ProcessError: a process failed.
    """
    if total_bytes % BLOCK_BYTES:
        raise ConfigInvalid.of_field("total", total_bytes, f"must be a multiple of {BLOCK_BYTES}")
    layout = summed_layout(total_bytes)
    async with AsyncExitStack() as stack:
        memory: SummedMemory = (
            SummedHost(layout, total_bytes, threads) if device == "cpu" else SummedDevice(layout, total_bytes, device)
        )
        cluster = await stack.enter_async_context(LocalCluster())
        flags = ("--checksums", "full", "--copy-threads", str(2 * threads))
        pair = await FerryPair.start(cluster, device, total_bytes, flags=flags)
        engines = await stack.enter_async_context(FerryEngines(pair, layout=layout))
        await engines.fill(SEED)
        methods = await _methods(memory, engines, total_bytes)
        rounds: dict[str, list[float]] = {name: [] for name in methods}
        for number in range(WARM_ROUNDS + repeats):
            for name, method in methods.items():
                seconds = await method()
                if number >= WARM_ROUNDS:
                    rounds[name].append(seconds)
            on_round()
    return ChecksumResult(total_bytes, device, {name: Timing(tuple(times)) for name, times in rounds.items()})


async def _methods(
    memory: SummedMemory, engines: FerryEngines, total_bytes: int
) -> dict[str, Callable[[], Awaitable[float]]]:
    blocks = np.random.default_rng(SEED).permutation(total_bytes // BLOCK_BYTES).tolist()
    handle = await engines.publish_blocks(blocks)

    async def pull(verify: str, share: int) -> float:
        started = time.perf_counter()
        result = await engines.destination.pull(handle, blocks[::-1], PULL_TIMEOUT_S, verify=verify)
        seconds = time.perf_counter() - started
        expected = total_bytes // share if share else 0
        if abs(result.compared_bytes - expected) > BLOCK_BYTES:
            raise TransportFailed(f"a pull compared {result.compared_bytes} bytes, not {expected}")
        return seconds

    async def publish() -> float:
        started = time.perf_counter()
        made = await engines.source.publish(blocks, len(blocks) * 16, PULL_TIMEOUT_S, expected_readers=0)
        seconds = time.perf_counter() - started
        await engines.source.release(made)
        return seconds

    return {
        COPY: partial(asyncio.to_thread, memory.copy),
        DIGEST: partial(asyncio.to_thread, memory.digest),
        PUBLISH: publish,
        PULL_OFF: partial(pull, "off", 0),
        "pull sampled:16": partial(pull, "sampled:16", 16),
        "pull full": partial(pull, "full", 1),
    }
