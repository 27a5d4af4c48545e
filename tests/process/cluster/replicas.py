"""Two prefill workers that hold publications of the same tokens, and a decode worker that reads over sockets."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import numpy as np

from kvferry import EngineClient, Publication, RetryableError, RouterClient, TransferResult
from kvferry.core.dense import CROSS_LAYER, DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.worker import LocalWorker, WorkerSpec
from tests.process.cluster.pair import eventually, ready

RANKS = 2
MODEL = DenseModel("test", 1, 16, 128, 256, ElementType.BFLOAT16)
BLOCK_BYTES = 1 << 20
"""Of one block on one rank."""
BLOCK_TOKENS = MODEL.tokens_per_block
BLOCK_COUNT = 64
LAYOUT = dense_layout(MODEL, BLOCK_COUNT, RANKS, order=CROSS_LAYER)
ALL = list(range(BLOCK_COUNT))
REVERSED = ALL[::-1]
"""Destination blocks, so that no block stays where it was."""
SPAN_BLOCKS = 4
SHARE = 0.2
POISON = 0xEE
NAMES = ("prefill-0", "prefill-1", "decode-0")


@dataclass
class Replicas:
    """The workers and their engines, by name. The sources' contents differ, so that it shows who sent what."""

    cluster: LocalCluster
    workers: dict[str, LocalWorker]
    engines: dict[str, EngineClient]
    router: RouterClient

    @property
    def destination(self) -> EngineClient:
        """The engine that pulls."""
        return self.engines["decode-0"]

    async def pool(self, name: str, rank: int = 0) -> np.ndarray:
        """A worker's pool as ``[block, byte]``."""
        pool = await self.engines[name].attach(rank)
        return pool.numpy()[: BLOCK_BYTES * BLOCK_COUNT].reshape(BLOCK_COUNT, BLOCK_BYTES)

    async def publish(self, name: str, blocks: Sequence[int] = ALL, ttl_s: float = 60.0) -> Publication:
        """Fill blocks with what only this worker has and publish them."""
        for rank in range(RANKS):
            pool = await self.pool(name, rank)
            for block in blocks:
                pool[block] = content(name, rank, block)
        return await self.engines[name].publish(blocks, BLOCK_TOKENS * len(blocks), ttl_s)

    async def poison(self) -> None:
        """Write one value to the whole destination."""
        for rank in range(RANKS):
            (await self.pool("decode-0", rank))[:] = POISON

    async def stop_midway(self, name: str) -> None:
        """Stop the data plane of a source's first rank once about half of its blocks have arrived, and wait until
        the other rank has as many: what counts as verified is what every rank has."""
        for rank in range(RANKS):
            last = (await self.pool("decode-0", rank))[REVERSED[BLOCK_COUNT // 2]]
            await eventually(lambda last=last: bool(last[-1] != POISON), "half has arrived", pause_s=0.001)
            if rank == 0:
                self.workers[name].data_planes[0].pause()

    async def holds(self, rank: int, parts: Sequence[tuple[str, int]]) -> bool:
        """Whether a rank of the destination holds what these workers sent, each up to a token."""
        destination = await self.pool("decode-0", rank)
        begin = 0
        for name, stop in parts:
            for block in range(begin // BLOCK_TOKENS, stop // BLOCK_TOKENS):
                if (destination[REVERSED[block]] != content(name, rank, block)).any():
                    return False
            begin = stop
        return True

    async def readers(self, publication: Publication, name: str) -> int:
        """Readers of a publication that have not concluded."""
        listed = await self.router.of_worker(name).publications()
        return sum(found.active_reader_count for found in listed if found.name == publication.name)

    async def incarnation(self, name: str) -> int:
        """Of a worker, as the destination's control knows it."""
        return (await self.router.worker(name)).incarnation

    async def restart(self, name: str) -> None:
        """Start the data plane of the first rank again, and wait for its worker."""
        incarnation = await self.incarnation(name)
        await self.workers[name].start_data_plane(0)

        async def back() -> bool:
            return any(
                worker.name == f"workers/{name}" and worker.state == "ready" and worker.incarnation > incarnation
                for worker in await self.router.workers()
            )

        await eventually(back, f"{name} has begun a new life")

    async def restart_control(self, name: str) -> None:
        """Start the control of a source again, and wait until the destination has reached it."""
        await self.workers[name].start_control()
        await self.wait_reached(name)

    async def wait_reached(self, name: str) -> None:
        """Wait until a source whose control was away takes work again, and the destination has reached it."""

        async def reached() -> bool:
            try:
                publication = await self.publish(name, ALL[:1])
                await self.destination.pull(publication.handle, REVERSED[:1], timeout_s=3)
            except RetryableError:
                return False
            return True

        await eventually(reached, f"{name} is reached again", timeout_s=30)


def content(name: str, rank: int, block: int) -> int:
    """What every byte of a block is that a worker publishes."""
    return 1 + (block + 100 * NAMES.index(name) + 37 * rank) % 199


def tokens_from_last(result: TransferResult, rank: int) -> int:
    """How many tokens a rank read from the source that was tried last."""
    last = len(result.attempts)
    figures = result.ranks[rank]
    assert figures.rank == rank
    return sum(path.received_bytes for path in figures.paths if path.attempt == last) * BLOCK_TOKENS // BLOCK_BYTES


@asynccontextmanager
async def running_replicas() -> AsyncIterator[Replicas]:
    """Start everything; ends everything."""
    # Who is told of a publication reads it also where the source's control says nothing: here each source is asked.
    limits = {"span_bytes": SPAN_BLOCKS * BLOCK_BYTES, "source_time_share": SHARE, "told_readers": 0}
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(LocalCluster())
        specs = [
            WorkerSpec(
                name=name,
                role=name.partition("-")[0],
                ranks=RANKS,
                pool_bytes=BLOCK_COUNT * BLOCK_BYTES,
                # With the default transports of one host a stopped source is no obstacle to reading its memory.
                data_plane_flags=("--path", "nixl"),
                data_plane_environment={"UCX_TLS": "tcp"},
                limits=limits,
                metrics=False,
                # No test here waits for a lease to expire: nobody is to lose one on a busy machine.
                lease_ttl_s=20,
            )
            for name in NAMES
        ]
        workers = {spec.name: cluster.add_worker(spec) for spec in specs}
        await asyncio.gather(*(worker.start() for worker in workers.values()))
        engines = {
            name: await stack.enter_async_context(EngineClient.connect(worker.engine_socket, name, LAYOUT))
            for name, worker in workers.items()
        }
        router = await stack.enter_async_context(RouterClient([workers["decode-0"].endpoint]))
        await ready([workers["decode-0"]], NAMES)
        yield Replicas(cluster, workers, engines, router)
