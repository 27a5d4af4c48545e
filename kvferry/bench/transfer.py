"""``bench transfer``: whole pulls over each path against other libraries and against what the hardware gives.

All processes run for the whole benchmark, and every round has each method once: what disturbs one disturbs all.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from kvferry.bench.ceilings import Yardstick, make_ceilings
from kvferry.bench.ferry_pair import AUTO, LIBFABRIC, UCX, FerryEngines, FerryPair, forced_path
from kvferry.bench.figures import Timing
from kvferry.bench.host import host_info
from kvferry.bench.network import LOOPBACK, NAMESPACES, Network, open_network
from kvferry.bench.peer_pair import PeerPair
from kvferry.bench.peers import MOONCAKE, NIXL_DEFAULT, NIXL_TUNED, STREAM, Unavailable
from kvferry.bench.transfer_case import STAGES, PathCase, TransferRow
from kvferry.bench.workload import ORDERS, Workload, check_workload
from kvferry.core.errors import ConfigInvalid, TransportFailed
from kvferry.launch.cluster import LocalCluster
from kvferry.sdk.results import TransferResult

SEED = 20
PATHS = (AUTO, "local", "nixl", "packed", UCX, LIBFABRIC)
BASELINES = (NIXL_DEFAULT, NIXL_TUNED, MOONCAKE)


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """What is measured: every order with every block size, ``repeats`` rounds each."""

    paths: tuple[str, ...]
    device: str
    block_sizes: tuple[int, ...]
    total_bytes: int
    orders: tuple[str, ...]
    repeats: int
    threads: int
    """Of the ceilings in host memory."""
    network: str
    sm_count: str = "all"
    """GPU multiprocessors that copies may take, as the data plane's flag has it."""

    def workloads(self) -> list[Workload]:
        """The cases; blocks of one size one after the other, since engines declare a layout for each."""
        pool = self.total_bytes
        return [
            Workload(block_bytes, self.total_bytes, pool, SEED, order)
            for block_bytes in self.block_sizes
            for order in self.orders
        ]

    def check(self) -> None:
        """Raise ConfigInvalid for what cannot be measured; names the field."""
        _require_known("paths", self.paths, PATHS)
        _require_known("order", self.orders, ORDERS)
        for block_bytes in self.block_sizes:
            check_workload(block_bytes, self.total_bytes)
        if self.network != LOOPBACK and "local" in self.paths:
            raise ConfigInvalid.of_field("paths", "local", f"has no memory to map over the network {self.network}")


@dataclass(frozen=True, slots=True)
class _Bench:
    """All that runs."""

    pairs: Mapping[str, FerryPair]
    yardsticks: Mapping[str, Yardstick]
    unavailable: Mapping[str, str]


async def measure_transfers(
    settings: TransferSettings, on_stage: Callable[[str], None]
) -> AsyncGenerator[list[TransferRow]]:
    """Measure case after case; the rows of each, one by path, once it is done. Close it to end all processes early.

    Raises:
        ConfigInvalid: something cannot be measured.
        TransportFailed: a byte was wrong, or a pull did not take the path that was forced.
        ProcessError: a process failed.
    """
    settings.check()
    async with _running(settings, on_stage) as bench:
        host = host_info(next(iter(bench.pairs.values())).transport_settings())
        for block_bytes in settings.block_sizes:
            async with AsyncExitStack() as stack:
                engines = {}
                for path, pair in bench.pairs.items():
                    engines[path] = await stack.enter_async_context(FerryEngines(pair, block_bytes))
                    await engines[path].fill(SEED)
                for workload in (w for w in settings.workloads() if w.block_bytes == block_bytes):
                    on_stage(f"{workload.block_count} {workload.order} blocks of {block_bytes} bytes")
                    yield [
                        TransferRow(case, workload, settings.device, settings.network, bench.unavailable, host)
                        for case in await _measure(workload, bench.yardsticks, engines, settings.repeats)
                    ]


@asynccontextmanager
async def _running(settings: TransferSettings, on_stage: Callable[[str], None]) -> AsyncIterator[_Bench]:
    pool = settings.total_bytes
    async with AsyncExitStack() as stack:
        network = stack.enter_context(open_network(settings.network, settings.device))
        cluster = await stack.enter_async_context(LocalCluster(etcd_namespace=network.source.namespace))
        pairs = {}
        for path in settings.paths:
            on_stage(f"starting two workers for the path {path}")
            pairs[path] = await FerryPair.start(
                cluster, settings.device, pool, path=path, network=network, flags=("--sm-count", settings.sm_count)
            )
        yardsticks: dict[str, Yardstick] = {}
        unavailable: dict[str, str] = {}
        for library in (*BASELINES, *([STREAM] if settings.network == NAMESPACES else [])):
            on_stage(f"starting {library}")
            try:
                peers = await _start_peers(library, settings, cluster, network)
            except Unavailable as error:
                unavailable[library] = str(error)
                continue
            stack.push_async_callback(peers.stop)
            yardsticks[library] = peers
        if settings.network == LOOPBACK:
            yardsticks |= make_ceilings(settings.device, pool, SEED, settings.threads)
        yield _Bench(pairs, yardsticks, unavailable)


async def _start_peers(library: str, settings: TransferSettings, cluster: LocalCluster, network: Network) -> PeerPair:
    return await PeerPair.start(library, settings.device, settings.total_bytes, SEED, cluster.directory, network)


async def _measure(
    workload: Workload, yardsticks: Mapping[str, Yardstick], engines: Mapping[str, FerryEngines], repeats: int
) -> list[PathCase]:
    """Verify every method once, which also warms it, then time them in turns."""
    blocks = workload.destination_blocks().tolist()
    handles = {}
    for yardstick in yardsticks.values():
        await yardstick.read_verified(workload, SEED)
    for path, pair in engines.items():
        handles[path] = await pair.publish(workload)
        await pair.pull_verified(handles[path], workload, SEED)
    others: dict[str, list[float]] = {name: [] for name in yardsticks}
    pulls: dict[str, list[tuple[float, TransferResult]]] = {path: [] for path in engines}
    for _ in range(repeats):
        for name, yardstick in yardsticks.items():
            others[name].append(await yardstick.read(workload))
        for path, pair in engines.items():
            started = time.perf_counter()
            result = await pair.pull(handles[path], blocks)
            pulls[path].append((time.perf_counter() - started, result))
            require_path(result, path)
    for pair in engines.values():
        await pair.release()
    timings = {name: Timing(tuple(seconds)) for name, seconds in others.items()}
    return [_case(path, rounds, timings) for path, rounds in pulls.items()]


def _require_known(field: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise ConfigInvalid.of_field(field, value, f"must be one of {', '.join(known)}")
        if values.count(value) > 1:
            raise ConfigInvalid.of_field(field, value, "listed twice")


def require_path(result: TransferResult, wanted: str) -> None:
    """Raise TransportFailed if a pull took another path than the one that was forced."""
    other_backend = wanted == LIBFABRIC and result.backend != LIBFABRIC.upper()
    if other_backend or forced_path(wanted) not in (AUTO, result.path):
        raise TransportFailed(
            f"path={wanted} was forced, the pull took {result.path}/{result.backend} ({result.choice})"
        )


def _case(path: str, rounds: list[tuple[float, TransferResult]], others: Mapping[str, Timing]) -> PathCase:
    results = [result for _, result in rounds]
    return PathCase(
        path=path,
        path_taken="+".join(sorted({result.path for result in results})),
        choice="; ".join(sorted({result.choice for result in results if result.choice})),
        piece_count=results[-1].descriptor_count,
        timing=Timing(tuple(seconds for seconds, _ in rounds)),
        stages={stage: Timing(tuple(getattr(result, stage) for result in results)) for stage in STAGES},
        others=others,
    )
