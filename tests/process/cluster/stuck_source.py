"""A source that stops midway through a read, another that does not, and destinations that read from both.

Over sockets (`UCX_TLS=tcp`), so that a stopped source really stalls a read.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvferry import EngineClient
from kvferry.core.dense import CROSS_LAYER, DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.worker import LocalWorker, WorkerSpec
from kvferry.sdk.pulls import Pull
from kvferry_dataplane.reads.unsafe import CONFIRMATION, SKIP_ROLLOVER
from tests.process.cluster.pair import eventually, ready

MODEL = DenseModel("large", 1, 8, 128, 256, ElementType.BFLOAT16)
BLOCK_BYTES = 1 << 20
BLOCK_COUNT = 112
LAYOUT = dense_layout(MODEL, BLOCK_COUNT, order=CROSS_LAYER)
READ = list(range(96))
"""Blocks of the read that is stopped, on both sides: more than can be in flight."""
OTHERS = [100, 101]
"""Blocks of the reads from the other source."""
FILLED = 0xA5
LATE_S = 1.0
SOURCES = ("stuck-0", "other-0")
DESTINATIONS = ("decode-0", "unsafe-0")


class Ending(Protocol):
    """A pull, or a task or process that waits for one."""

    def done(self) -> bool:
        """Whether it is over."""


@dataclass
class Trio:
    """Two sources and a destination. Pools are ``[block, byte]``."""

    workers: dict[str, LocalWorker]
    engines: dict[str, EngineClient]
    destination: str = "decode-0"
    pools: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    handles: dict[str, bytes] = field(default_factory=dict)

    @property
    def engine(self) -> EngineClient:
        """The destination's."""
        return self.engines[self.destination]

    @property
    def pool(self) -> npt.NDArray[np.uint8]:
        """The destination's."""
        return self.pools[self.destination]

    async def prepare(self) -> None:
        """Fill and publish both sources."""
        for name, engine in self.engines.items():
            pool = (await engine.attach(0)).numpy()
            self.pools[name] = pool[: BLOCK_COUNT * BLOCK_BYTES].reshape(BLOCK_COUNT, BLOCK_BYTES)
        for name, blocks in (("stuck-0", READ), ("other-0", OTHERS)):
            self.pools[name][:] = FILLED
            tokens = MODEL.tokens_per_block * len(blocks)
            self.handles[name] = (await self.engines[name].publish(blocks, tokens, 600, 0)).handle

    def arrived(self) -> int:
        """Blocks of the read whose last byte is there."""
        return int(np.count_nonzero(self.pool[READ, -1]))

    async def stopped_midway(self, timeout_s: float) -> Pull:
        """A pull from the source that is to be stuck, some of whose blocks have arrived when its data plane stops."""
        self.pool[READ] = 0
        pull = await self.engine.start_pull(self.handles["stuck-0"], READ, timeout_s=timeout_s)
        await self.stop_midway(pull)
        return pull

    async def stop_midway(self, pull: Ending) -> None:
        """Stop the source once some blocks of a pull into zeroes have arrived."""
        source = self.workers["stuck-0"].data_planes[0]
        async with asyncio.timeout(10):
            while self.arrived() < 4:  # noqa: ASYNC110 - what is waited for lies in another process
                await asyncio.sleep(0.001)
        source.pause()
        stat = Path(f"/proc/{source.pid}/stat")
        await eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the source has stopped")
        assert self.arrived() < len(READ), "the read was over before its source stopped"
        assert not pull.done()

    async def pull_from_other(self, blocks: list[int]) -> None:
        """A pull that has nothing to do with the source that is stuck."""
        await self.engine.pull(self.handles["other-0"], blocks, timeout_s=10)

    async def late_bytes(self, *, expected: bool) -> int:
        """Write zeroes to the blocks that were handed back, let the source go on, and count what else appears."""
        handed_back = self.pool[: len(READ)]
        handed_back[:] = 0
        self.workers["stuck-0"].data_planes[0].resume()
        if expected:
            await eventually(lambda: bool(np.any(handed_back)), "late bytes")
        else:
            await asyncio.sleep(LATE_S)
        return int(np.count_nonzero(handed_back))


def spec_of(name: str) -> WorkerSpec:
    """One of the workers; ``unsafe-0`` is a destination that gives up no agent."""
    environment = {"UCX_TLS": "tcp"}
    if name == "unsafe-0":
        environment[SKIP_ROLLOVER] = CONFIRMATION
    return WorkerSpec(
        name=name,
        role="decode" if name in DESTINATIONS else "prefill",
        pool_bytes=BLOCK_COUNT * BLOCK_BYTES,
        data_plane_flags=("--path", "nixl"),
        data_plane_environment=environment,
    )


@asynccontextmanager
async def running_trio() -> AsyncIterator[Trio]:
    """Two sources, and a destination as kvferry is meant to run."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(LocalCluster())
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(cluster.start_worker(spec_of(name))) for name in (*SOURCES, *DESTINATIONS)]
        workers = {worker.name: worker for worker in (task.result() for task in started)}
        engines = {
            name: await stack.enter_async_context(EngineClient.connect(worker.engine_socket, f"engine-{name}", LAYOUT))
            for name, worker in workers.items()
        }
        await ready([workers[name] for name in DESTINATIONS], list(workers))
        trio = Trio(workers, engines)
        await trio.prepare()
        yield trio
