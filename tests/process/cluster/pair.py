"""A prefill worker and a decode worker with engines attached, for tests over real processes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kvferry import EngineClient, NotReady, Publication, RouterClient
from kvferry.core.dense import CROSS_LAYER, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.namespaces import NamespacePair
from kvferry.launch.worker import LocalWorker, WorkerSpec

MIB = 1 << 20
MODEL = DenseModel(
    model="test", layer_count=4, kv_heads=4, head_dim=32, tokens_per_block=16, element_type=ElementType.FLOAT32
)
RANKS = 2
BLOCK_BYTES = 4 * 2 * 2 * 16 * 32 * 4
"""Of one block on one rank: layers, K and V, heads of the rank, tokens, head dimension, bytes of an element."""
BLOCK_COUNT = 1024
POOL_BYTES = BLOCK_BYTES * BLOCK_COUNT


def layout_of(block_count: int = BLOCK_COUNT, **model: Any) -> WorkerLayout:
    """The layout of both workers; ``model`` changes fields of the model."""
    values = {name: getattr(MODEL, name) for name in MODEL.__dataclass_fields__}
    return dense_layout(DenseModel(**{**values, **model}), block_count, RANKS, order=CROSS_LAYER)


async def eventually(
    condition: Callable[[], Awaitable[bool]] | Callable[[], bool],
    what: str,
    timeout_s: float = 15.0,
    pause_s: float = 0.02,
) -> None:
    """Wait until ``condition`` holds; fail with ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(pause_s)


@dataclass
class Pair:
    """Both workers and their engines. Block contents are read and written through the attached pools."""

    cluster: LocalCluster
    prefill: LocalWorker
    decode: LocalWorker
    source: EngineClient
    destination: EngineClient
    router: RouterClient

    @property
    def workers(self) -> tuple[LocalWorker, LocalWorker]:
        """Both."""
        return self.prefill, self.decode

    async def pool(self, engine: EngineClient, rank: int) -> np.ndarray:
        """A rank's pool as ``[block, byte]``."""
        pool = await engine.attach(rank)
        return pool.numpy()[: BLOCK_BYTES * BLOCK_COUNT].reshape(BLOCK_COUNT, BLOCK_BYTES)

    async def fill(self, blocks: Sequence[int], seed: int) -> None:
        """Write random bytes to the source's blocks on every rank."""
        for rank in range(RANKS):
            generator = np.random.default_rng((seed, rank))
            pool = await self.pool(self.source, rank)
            pool[list(blocks)] = generator.integers(0, 256, (len(blocks), BLOCK_BYTES), dtype=np.uint8)

    async def poison(self, blocks: Sequence[int], value: int) -> None:
        """Write one value to the destination's blocks on every rank."""
        for rank in range(RANKS):
            (await self.pool(self.destination, rank))[list(blocks)] = value

    async def differing(self, source: Sequence[int], destination: Sequence[int]) -> int:
        """How many bytes of the destination's blocks differ from the source's, over all ranks."""
        return differing(await self.views(), source, destination)

    async def views(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Both pools of every rank. They can be looked at also when the data planes have ended."""
        return [(await self.pool(self.source, rank), await self.pool(self.destination, rank)) for rank in range(RANKS)]

    async def publish(self, blocks: Sequence[int], ttl_s: float = 30.0, readers: int = 1) -> Publication:
        """Publish blocks that are full of tokens."""
        return await self.source.publish(blocks, MODEL.tokens_per_block * len(blocks), ttl_s, readers)

    async def live_publications(self) -> int:
        """Publications of the prefill worker that have not ended, as its control counts them."""
        listed = await self.router.of_worker(self.prefill.name).publications()
        return sum(not publication.state.is_ended for publication in listed)


def differing(views: Sequence[tuple[np.ndarray, np.ndarray]], source: Sequence[int], destination: Sequence[int]) -> int:
    """How many bytes of the destination's blocks differ from the source's."""
    return sum(int((ours[list(source)] != theirs[list(destination)]).sum()) for ours, theirs in views)


async def ready(seen_by: Sequence[LocalWorker], names: Sequence[str]) -> None:
    """Wait until the workers are READY as the control of each of ``seen_by`` sees the cluster.

    Whom a control has not heard of yet it refuses, whatever another one knows: the one that will pull is to be among
    them, and no router will do that asks whichever control it likes.
    """
    for seer in seen_by:
        # The socket is there also where the control's address is in a network namespace.
        async with RouterClient([f"unix:{seer.engine_socket}"]) as view:
            await eventually(partial(_all_ready, view, names), f"{names} are ready for {seer.name}")


async def _all_ready(view: RouterClient, names: Sequence[str]) -> bool:
    try:
        states = {worker.name.removeprefix("workers/"): worker.state for worker in await view.workers()}
    except NotReady:
        # After a restart: this process shares connections, and one that broke is tried again only after a pause.
        return False
    return all(states.get(name) == "ready" for name in names)


@asynccontextmanager
async def running_pair(
    source_layout: WorkerLayout | None = None,
    destination_layout: WorkerLayout | None = None,
    *,
    wire: NamespacePair | None = None,
    only: Mapping[str, Mapping[str, Any]] | None = None,
    **spec: Any,
) -> AsyncIterator[Pair]:
    """Start everything; ends everything. ``wire`` has the workers on its two sides; ``spec`` changes fields of both
    workers' specs, ``only`` of one's, by name."""
    layouts = {"prefill-0": source_layout or layout_of(), "decode-0": destination_layout or layout_of()}
    async with AsyncExitStack() as stack:
        sides = (None, None) if wire is None else (wire.source, wire.destination)
        cluster = await stack.enter_async_context(LocalCluster(etcd_namespace=sides[0]))
        workers = []
        for name, role, side in (("prefill-0", "prefill", sides[0]), ("decode-0", "decode", sides[1])):
            place = {} if side is None else {"namespace": side, "listen": side.listen}
            fields = {"pool_bytes": POOL_BYTES, **place, **spec, **(only or {}).get(name, {})}
            workers.append(await cluster.start_worker(WorkerSpec(name=name, role=role, ranks=RANKS, **fields)))
        engines = [
            await stack.enter_async_context(
                EngineClient.connect(worker.engine_socket, f"engine-{worker.name}", layouts[worker.name])
            )
            for worker in workers
        ]
        found_at = [worker.endpoint if wire is None else f"unix:{worker.engine_socket}" for worker in workers]
        router = await stack.enter_async_context(RouterClient(found_at))
        await ready(workers, [worker.name for worker in workers])
        yield Pair(cluster, workers[0], workers[1], engines[0], engines[1], router)
