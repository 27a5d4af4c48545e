"""``bench transfer``: whole pulls over each path against other libraries and against what the hardware gives.

All processes run for the whole benchmark, and every round has each method once: what disturbs one disturbs all.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from kvferry.bench.both_ways import PullRound, PullsAtOnce, YardsticksAtOnce
from kvferry.bench.ceilings import Yardstick, make_ceilings
from kvferry.bench.ferry_pair import AUTO, LIBFABRIC, FerryEngines, FerryPair, forced_path
from kvferry.bench.figures import Timing
from kvferry.bench.host import host_info
from kvferry.bench.network import LOOPBACK, NAMESPACES, Network, open_network
from kvferry.bench.peer_pair import PeerPair
from kvferry.bench.peers import MOONCAKE, NIXL_DEFAULT, NIXL_TUNED, STREAM, Unavailable
from kvferry.bench.transfer_case import STAGES, PathCase, TransferRow
from kvferry.bench.transfer_settings import SEED, Direction, TransferSettings, Variant
from kvferry.bench.workload import Workload
from kvferry.core.errors import TransportFailed
from kvferry.launch.cluster import LocalCluster
from kvferry.sdk.results import TransferResult

BASELINES = (NIXL_DEFAULT, NIXL_TUNED, MOONCAKE)


@dataclass(frozen=True, slots=True)
class _Bench:
    """All that runs; of each variant a pair for every direction."""

    pairs: Mapping[Variant, Sequence[FerryPair]]
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
        host = host_info(next(iter(bench.pairs.values()))[0].transport_settings())
        for block_bytes in settings.block_sizes:
            async with AsyncExitStack() as stack:
                engines = {}
                for variant, pairs in bench.pairs.items():
                    opened = [await stack.enter_async_context(FerryEngines(pair, block_bytes)) for pair in pairs]
                    for one in opened:
                        await one.fill(SEED)
                    engines[variant] = PullsAtOnce(opened)
                for workload in (w for w in settings.workloads() if w.block_bytes == block_bytes):
                    on_stage(f"{workload.block_count} {workload.order} blocks of {block_bytes} bytes")
                    yield [
                        TransferRow(case, workload, settings.place, bench.unavailable, host)
                        for case in await _measure(workload, bench.yardsticks, engines, settings.repeats)
                    ]


@asynccontextmanager
async def _running(settings: TransferSettings, on_stage: Callable[[str], None]) -> AsyncIterator[_Bench]:
    pool = settings.total_bytes
    async with AsyncExitStack() as stack:
        network = stack.enter_context(open_network(settings.network, settings.device))
        cluster = await stack.enter_async_context(LocalCluster(etcd_namespace=network.source.namespace))
        pairs = {}
        for variant in settings.variants():
            on_stage(f"starting workers for the path {variant.label}")
            pairs[variant] = [
                await _start_pair(variant, direction, cluster, pool, network) for direction in settings.directions
            ]
        yardsticks: dict[str, Yardstick] = {}
        unavailable: dict[str, str] = {}
        for library in (*BASELINES, *([STREAM] if settings.network == NAMESPACES else [])):
            on_stage(f"starting {library}")
            try:
                peers = await _start_peers(library, settings, cluster, network, stack)
            except Unavailable as error:
                unavailable[library] = str(error)
                continue
            yardsticks[library] = YardsticksAtOnce(peers)
        if settings.network == LOOPBACK:
            each = [make_ceilings(direction.devices, pool, SEED, settings.threads) for direction in settings.directions]
            yardsticks |= {name: YardsticksAtOnce([ceilings[name] for ceilings in each]) for name in each[0]}
        yield _Bench(pairs, yardsticks, unavailable)


async def _start_pair(
    variant: Variant, direction: Direction, cluster: LocalCluster, pool_bytes: int, network: Network
) -> FerryPair:
    return await FerryPair.start(
        cluster,
        direction.destination,
        pool_bytes,
        source_device=direction.source,
        path=variant.path,
        name=variant.name + direction.suffix,
        network=direction.network(network),
        flags=("--sm-count", variant.sm_count),
    )


async def _start_peers(
    library: str, settings: TransferSettings, cluster: LocalCluster, network: Network, stack: AsyncExitStack
) -> list[PeerPair]:
    started = []
    for direction in settings.directions:
        name, where, pool = library + direction.suffix, direction.network(network), settings.total_bytes
        pair = await PeerPair.start(library, name, direction.devices, pool, SEED, cluster.directory, where)
        stack.push_async_callback(pair.stop)
        started.append(pair)
    return started


async def _measure(
    workload: Workload, yardsticks: Mapping[str, Yardstick], engines: Mapping[Variant, PullsAtOnce], repeats: int
) -> list[PathCase]:
    """Verify every method once, which also warms it, then time them in turns."""
    blocks = workload.destination_blocks().tolist()
    for yardstick in yardsticks.values():
        await yardstick.read_verified(workload, SEED)
    for pulling in engines.values():
        await pulling.publish(workload, SEED)
    others: dict[str, list[float]] = {name: [] for name in yardsticks}
    pulls: dict[Variant, list[PullRound]] = {variant: [] for variant in engines}
    for _ in range(repeats):
        for name, yardstick in yardsticks.items():
            others[name].append(await yardstick.read(workload))
        for variant, pulling in engines.items():
            pulled = await pulling.pull(blocks)
            for result in pulled.results:
                require_path(result, variant.path)
            pulls[variant].append(pulled)
    for pulling in engines.values():
        await pulling.release()
    timings = {name: Timing(tuple(seconds)) for name, seconds in others.items()}
    return [_case(variant, rounds, timings) for variant, rounds in pulls.items()]


def require_path(result: TransferResult, wanted: str) -> None:
    """Raise TransportFailed if a pull took another path than the one that was forced."""
    other_backend = wanted == LIBFABRIC and result.backend != LIBFABRIC.upper()
    if other_backend or forced_path(wanted) not in (AUTO, result.path):
        raise TransportFailed(
            f"path={wanted} was forced, the pull took {result.path}/{result.backend} ({result.choice})"
        )


def _case(variant: Variant, rounds: list[PullRound], others: Mapping[str, Timing]) -> PathCase:
    results = [result for pulled in rounds for result in pulled.results]
    return PathCase(
        path=variant.path,
        sm_count=variant.sm_count,
        label=variant.label,
        path_taken="+".join(sorted({result.path for result in results})),
        choice="; ".join(sorted({result.choice for result in results if result.choice})),
        piece_count=results[-1].descriptor_count,
        timing=Timing(tuple(pulled.seconds for pulled in rounds)),
        stages={stage: Timing(tuple(pulled.slowest(stage) for pulled in rounds)) for stage in STAGES},
        others=others,
    )
