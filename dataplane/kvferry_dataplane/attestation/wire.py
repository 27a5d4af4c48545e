"""Attestations in their wire form."""

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.rpc.times import duration
from kvferry.worker.v1.worker_pb2 import AttestedRoute
from kvferry_dataplane.attestation.findings import Attestation, Way
from kvferry_dataplane.wire import PATHS


def peer_attested_of(peer: str, attestation: Attestation) -> pb.PeerAttested:
    """What was found out about a peer."""
    routes = [_route_of(way) for way in attestation.ways]
    return pb.PeerAttested(peer=peer, routes=routes, refusal="; ".join(attestation.refusals))


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
