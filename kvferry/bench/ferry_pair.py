"""Two kvferry workers of one rank each; this process is the engine of both."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Self

from kvferry.bench.memory import fill, first_wrong_block, poison
from kvferry.bench.network import Network
from kvferry.bench.workload import GROUP, Workload, bench_layout
from kvferry.core.errors import NotReady, TransportFailed
from kvferry.core.layouts import WorkerLayout
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.concurrently import all_of
from kvferry.launch.worker import LocalWorker, WorkerSpec
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.results import TransferResult
from kvferry.sdk.router import RouterClient

SOURCE = "bench-source"
DESTINATION = "bench-destination"
AUTO = "auto"
"""The path that a destination takes if none is forced on it."""
UCX = "ucx"
LIBFABRIC = "libfabric"
"""Read by NIXL with its LIBFABRIC backend; all other paths but UCX's own are those of NIXL with UCX."""
_TRANSPORTS = {UCX: ("--backend", "UCX"), LIBFABRIC: ("--nixl-backend", "LIBFABRIC")}
READY_TIMEOUT_S = 30.0
PULL_TIMEOUT_S = 120.0
TTL_S = 3_000.0


def forced_path(path: str) -> str:
    """What a data plane calls a path."""
    return "nixl" if path == LIBFABRIC else path


class FerryPair:
    """Workers that live for the whole benchmark; engines declare one block size after the other."""

    def __init__(self, source: LocalWorker, destination: LocalWorker, pool_bytes: int) -> None:
        self.source = source
        self.destination = destination
        self.pool_bytes = pool_bytes

    @classmethod
    async def start(
        cls,
        cluster: LocalCluster,
        device: str,
        pool_bytes: int,
        *,
        source_device: str = "",
        path: str = "auto",
        name: str = "",
        network: Network | None = None,
        flags: Sequence[str] = (),
    ) -> Self:
        """Start both workers, with ``path`` forced on the destination and ``flags`` for the data planes.

        The source's pool is on ``source_device`` if that is another; ``name`` tells their names from other pairs'.

        Raises:
            ProcessError: a process failed.
        """
        network = network or Network()
        prefix = f"{name}-" if name else ""
        source, destination = await all_of(
            cluster.start_worker(
                WorkerSpec(
                    name=prefix + worker,
                    role=role,
                    device=where,
                    pool_bytes=pool_bytes,
                    listen=f"{side.address}:0",
                    pack_listen=f"{side.address}:0",
                    namespace=side.namespace,
                    data_plane_flags=(
                        *("--path", forced_path(path), "--same-host", network.same_host),
                        *_TRANSPORTS.get(path, ()),
                        *flags,
                    ),
                    data_plane_environment=network.transports,
                )
            )
            for worker, role, where, side in (
                (SOURCE, "prefill", source_device or device, network.source),
                (DESTINATION, "decode", device, network.destination),
            )
        )
        return cls(source, destination, pool_bytes)

    def transport_settings(self) -> dict[str, str]:
        """UCX's and NIXL's settings in effect at the destination, as its data plane tells them in its log."""
        for line in self.destination.data_planes[0].log_lines():
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "transport":
                # The user's own settings win over those that the data plane would have chosen.
                return {**said["settings"], **said["settings_of_user"]}
        return {}


class FerryEngines:
    """Both engines with one layout: by default blocks of one size and one run each. An asynchronous context manager."""

    def __init__(self, pair: FerryPair, block_bytes: int = 0, *, layout: WorkerLayout | None = None) -> None:
        self._pair = pair
        self._layout = layout or bench_layout(block_bytes, pair.pool_bytes)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Declare the layout and wait until the pair matches. Raises NotReady if it does not in time."""
        async with AsyncExitStack() as stack:
            self._source = await stack.enter_async_context(self._connect(self._pair.source))
            self._destination = await stack.enter_async_context(self._connect(self._pair.destination))
            await self._wait_for_pair()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def source(self) -> EngineClient:
        """The engine that publishes."""
        return self._source

    @property
    def destination(self) -> EngineClient:
        """The engine that pulls."""
        return self._destination

    async def publish(self, workload: Workload) -> bytes:
        """Publish a workload's source blocks; the handle. It ends with the publication's time or :meth:`release`."""
        return await self.publish_blocks(workload.source_blocks().tolist())

    async def publish_blocks(self, blocks: list[int]) -> bytes:
        """Publish blocks of the source, full of tokens; the handle."""
        tokens = len(blocks) * self._layout.group(GROUP).tokens_per_block
        self._published = await self._source.publish(blocks, tokens, TTL_S, expected_readers=0)
        self._published_blocks = blocks
        return self._published.handle

    async def release(self) -> None:
        """End the last publication."""
        await self._source.release(self._published)

    async def pull(self, handle: bytes, blocks: list[int]) -> TransferResult:
        """A whole pull, from the engine's call to its completion."""
        return await self._destination.pull(handle, blocks, PULL_TIMEOUT_S)

    async def fill(self, seed: int) -> None:
        """Fill the source's pool with the noise of ``seed``."""
        fill((await self._source.attach(0)).bytes, seed)

    async def pull_verified(self, handle: bytes, workload: Workload, seed: int) -> None:
        """Pull into poisoned memory and compare every byte. Raises TransportFailed if a block is wrong."""
        await self.pull_all_verified([(handle, workload.destination_blocks().tolist())], workload, seed)

    async def pull_all_verified(self, pulls: Sequence[tuple[bytes, list[int]]], workload: Workload, seed: int) -> None:
        """As :meth:`pull_verified`, for a workload that several handles and block lists make up; all at once."""
        arrived = (await self._destination.attach(0)).bytes
        poison(arrived)
        await all_of(self.pull(handle, blocks) for handle, blocks in pulls)
        wrong = first_wrong_block(arrived, workload, seed)
        if wrong is not None:
            raise TransportFailed(f"kvferry: destination block {wrong} is wrong")

    async def publish_again(self) -> bytes:
        """Publish the last blocks once more, to a reader that is known by now, as it is between workers that serve;
        the handle.
        """
        blocks = self._published_blocks
        await self.release()
        return await self.publish_blocks(blocks)

    def _connect(self, worker: LocalWorker) -> EngineClient:
        return EngineClient.connect(worker.engine_socket, "bench", self._layout)

    async def _wait_for_pair(self) -> None:
        # The socket is reached from every network namespace.
        endpoint = f"unix:{self._pair.destination.engine_socket}"
        names = {f"workers/{worker.name}" for worker in (self._pair.source, self._pair.destination)}
        try:
            async with asyncio.timeout(READY_TIMEOUT_S), RouterClient(endpoint) as router:
                async for view in router.watch_workers():
                    ready = {w.name for w in view.workers if w.state == "ready" and w.layout == self._layout}
                    if names <= ready:
                        return
        except TimeoutError:
            raise NotReady(f"the pair did not match in {READY_TIMEOUT_S:g} s") from None
