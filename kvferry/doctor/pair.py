"""Has real bytes moved between two workers on every path that is possible. Nothing of either is changed.

The control of the worker that reads is asked for it: its data planes read bytes that the others keep for this, into
memory of their own, after all other reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grpc import aio

from kvferry.core.errors import InvalidArgument, KvferryError
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.options import channel_options
from kvferry.sdk.convert import attested_route_of
from kvferry.sdk.results import AttestedRoute, Pair, Role, Worker
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
    route: AttestedRoute | None = None
    """What was found by reading real bytes; None where it is impossible."""
    refusal: str = ""
    """Why it is impossible; empty where it is possible."""

    @property
    def way(self) -> tuple[str, ...]:
        """What is alike between ranks that are reached alike."""
        if self.route is None:
            return self.path, self.refusal
        return self.path, self.route.backend, self.route.transport, self.route.device


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
        if source.role is not Role.DECODE and destination.role is not Role.PREFILL
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
    route = attested_route_of(found.route)
    return ProbedPath(path, ranks.source_rank, ranks.destination_rank, route=route)
