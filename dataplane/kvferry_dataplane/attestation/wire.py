"""Attestations in their wire form."""

from collections.abc import Mapping

from kvferry.core.errors import KvferryError
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.rpc.times import duration
from kvferry.worker.v1.probe_pb2 import ProbedPath
from kvferry.worker.v1.worker_pb2 import AttestedRoute
from kvferry_dataplane.attestation.findings import Attestation, Way
from kvferry_dataplane.paths import Path
from kvferry_dataplane.wire import PATHS


def peer_attested_of(peer: str, attestation: Attestation) -> pb.PeerAttested:
    """What was found out about a peer."""
    routes = [_route_of(way) for way in attestation.ways]
    return pb.PeerAttested(peer=peer, routes=routes, refusal="; ".join(attestation.refusals))


def peer_surveyed_of(peer: str, survey: Mapping[Path, Way | KvferryError]) -> pb.PeerSurveyed:
    """What was found out about every path to a peer."""
    return pb.PeerSurveyed(peer=peer, paths=[_probed_of(path, found) for path, found in survey.items()])


def _probed_of(path: Path, found: Way | KvferryError) -> ProbedPath:
    if isinstance(found, Way):
        return ProbedPath(path=PATHS[path], route=_route_of(found.after(None)))
    return ProbedPath(path=PATHS[path], refusal=found.message)


def _route_of(way: Way) -> AttestedRoute:
    return AttestedRoute(
        path=PATHS[way.path],
        backend=way.backend,
        transport=way.use.transport,
        device=way.use.device,
        gbytes_per_s=way.gbytes_per_s,
        small_gbytes_per_s=way.small_gbytes_per_s,
        latency=duration(way.seconds.latency),
        degraded=way.degraded,
        best_gbytes_per_s=way.best_gbytes_per_s,
        rank_pair_count=1,
        note=way.use.how,
    )
