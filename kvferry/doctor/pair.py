"""Has real bytes moved between two workers on every path that is possible. Nothing of either is changed.

The control of the worker that reads is asked for it: its data planes read bytes that the others keep for this, into memory
of their own, after all other reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grpc import aio

from kvferry.core.errors import InvalidArgument, KvferryError
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.options import channel_options
from kvferry.rpc.times import seconds_of
from kvferry.sdk.results import Pair, Worker
from kvferry.sdk.router import RouterClient
from kvferry.transfer.v1 import transfer_pb2
from kvferry.worker.v1 import probe_pb2 as pb
from kvferry.worker.v1.probe_pb2_grpc import ProbeServiceStub

PROBE_S_MAX = 30.0
_PREFIX = "PATH_"


@dataclass(frozen=True, slots=True)
class ProbedPath:
    """One path between two ranks."""

    path: str
    source_rank: int
    destination_rank: int
    refusal: str = ""
    """Why it is impossible; then nothing else is known."""
    backend: str = ""
    transport: str = ""
    """By the backend's own report; empty: it gave none, and ``note`` says why."""
    device: str = ""
    gbytes_per_s: float = 0.0
    """Of pieces of 1 MiB."""
    small_gbytes_per_s: float = 0.0
    """Of pieces of 4 KiB."""
    latency_s: float = 0.0
    note: str = ""

    @property
    def way(self) -> str:
        """For people, for example ``nixl/UCX over cma (memory)``."""
        over = f" over {self.transport}" if self.transport and self.transport != self.backend else ""
        return f"{self.path}/{self.backend}{over}{f' ({self.device})' if self.device else ''}"


@dataclass(frozen=True, slots=True)
class Direction:
    """From one worker to the other."""

    source: str
    destination: str
    same_host: bool
    paths: tuple[ProbedPath, ...]
    unknown: tuple[str, ...] = ()
    """Why nothing could be found out between some ranks."""
    settings: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    """By worker and rank: what the environments set of the transports."""


def directions(own: Worker, peer: Worker) -> list[tuple[Worker, Worker]]:
    """Which way KV may move between two workers, by their roles: pairs of source and destination.

    Raises:
        InvalidArgument: none; both prefill, or both decode.
    """
    found = [
        (source, destination)
        for source, destination in ((own, peer), (peer, own))
        if source.role != "decode" and destination.role != "prefill"
    ]
    if not found:
        raise InvalidArgument.of_field("--peer", peer.name, f"and {own.name} are both for {own.role}")
    return found


async def find_workers(router: RouterClient, own: str, peer: str) -> list[tuple[Worker, Worker]]:
    """Both workers, in the directions in which KV may move.

    Raises:
        NotFound: one of them does not live.
        InvalidArgument: none.
    """
    return directions(await router.worker(own), await router.worker(peer))


async def verdict(router: RouterClient, source: Worker, destination: Worker) -> Pair:
    """Whether the two can be paired."""
    return await router.check_pair(source.name, destination.name)


async def probe(source: Worker, destination: Worker) -> Direction:
    """Read real bytes on every path.

    Raises:
        KvferryError: the destination's control cannot be reached, or refuses.
    """
    async with aio.insecure_channel(destination.endpoint, options=channel_options()) as channel:
        request = pb.ProbePairRequest(source=source.name)
        try:
            found = await ProbeServiceStub(channel).ProbePair(request, timeout=PROBE_S_MAX)
        except aio.AioRpcError as error:
            raise _without_service(error, destination) from error
    return Direction(
        source=source.name.removeprefix("workers/"),
        destination=destination.name.removeprefix("workers/"),
        same_host=found.same_host,
        paths=tuple(_path_of(one, path) for one in found.probes for path in one.paths),
        unknown=tuple(one.refusal for one in found.probes if one.refusal),
        settings={
            source.name.removeprefix("workers/"): [dict(rank.settings) for rank in found.source_settings],
            destination.name.removeprefix("workers/"): [dict(rank.settings) for rank in found.destination_settings],
        },
    )


def _without_service(error: aio.AioRpcError, destination: Worker) -> KvferryError:
    failure = from_rpc(error)
    return type(failure)(f"{destination.name}: {failure.message}", reason=failure.reason, metadata=failure.metadata)


def _path_of(ranks: pb.RankPairProbe, found: pb.ProbedPath) -> ProbedPath:
    path = transfer_pb2.Path.Name(found.path).removeprefix(_PREFIX).lower()
    if not found.HasField("route"):
        return ProbedPath(path, ranks.source_rank, ranks.destination_rank, refusal=found.refusal)
    route = found.route
    return ProbedPath(
        path=path,
        source_rank=ranks.source_rank,
        destination_rank=ranks.destination_rank,
        backend=route.backend,
        transport=route.transport,
        device=route.device,
        gbytes_per_s=route.gbytes_per_s,
        small_gbytes_per_s=route.small_gbytes_per_s,
        latency_s=seconds_of(route.latency),
        note=route.note,
    )
