"""The view of the cluster: which pairs a router is offered."""

from dataclasses import replace

import pytest

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry.core.path_floor import path_floor
from kvferry.error.v1 import error_pb2
from kvferry.transfer.v1 import transfer_pb2
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry_control.cluster import Cluster
from kvferry_control.records import PROTOCOL_VERSION, RankInfo, WorkerRecord, decode_record, encode_record

LAYOUT = dense_layout(DenseModel("model", 2, 2, 64, 16, ElementType.BFLOAT16), 8)


def worker(name: str, role: pb.Role.ValueType) -> WorkerRecord:
    """A worker that takes work."""
    return WorkerRecord(
        name, role, pb.WORKER_STATE_READY, "127.0.0.1:1", 1, name.encode(), PROTOCOL_VERSION, LAYOUT, ranks=()
    )


def cluster_with(draining: str) -> Cluster:
    """A source and two destinations, one of the three draining."""
    records = [worker("p", pb.ROLE_PREFILL), worker("d", pb.ROLE_DECODE), worker("e", pb.ROLE_DECODE)]
    cluster = Cluster()
    cluster.replace(
        {
            record.name: replace(record, state=pb.WORKER_STATE_DRAINING) if record.name == draining else record
            for record in records
        }
    )
    return cluster


def names(pairs: list[pb.Pair]) -> list[tuple[str, list[str]]]:
    """The destinations, and who drains."""
    return [(pair.destination.removeprefix("workers/"), list(pair.draining)) for pair in pairs]


@pytest.mark.parametrize(
    ("draining", "offered"), [("", ["d", "e"]), ("p", []), ("d", ["e"])], ids=["nobody", "source", "destination"]
)
def test_a_worker_that_drains_is_not_offered(draining: str, offered: list[str]) -> None:
    """Who asks for pairs that can be used gets none in which a worker drains."""
    assert [(name, []) for name in offered] == names(cluster_with(draining).pairs(compatible_only=True))


def test_a_draining_worker_stays_compatible() -> None:
    """Who asks for all pairs, or for one, gets those that drain with the worker named: their layouts match, and what is
    published on a draining source can still be pulled."""
    cluster = cluster_with("d")
    pairs = cluster.pairs(compatible_only=False)
    assert [("d", ["workers/d"]), ("e", [])] == names(pairs)
    assert all(pair.compatible and not pair.mismatches for pair in pairs)
    assert pairs[0] == cluster.pair(cluster.get("p"), cluster.get("d"))


def ranks(method: str, host: bytes, version: str = "1.5.1") -> tuple[RankInfo, ...]:
    """Two ranks alike."""
    return tuple(RankInfo(rank, "cpu", 1 << 20, method, version, host, maps_same_host=True) for rank in range(2))


def pair_of(source: WorkerRecord, destination: WorkerRecord) -> pb.Pair:
    """The verdict, of records as they come out of etcd."""
    kept = [decode_record(f"/w/{r.name}", encode_record(r, r.incarnation), 1) for r in (source, destination)]
    assert [source, destination] == kept
    cluster = Cluster()
    cluster.replace({record.name: record for record in kept})
    return cluster.pair(*kept)


SOURCE = replace(worker("p", pb.ROLE_PREFILL), ranks=ranks("nixl/UCX", b"one"), version="1")
DESTINATION = replace(worker("d", pb.ROLE_DECODE), ranks=ranks("nixl/UCX", b"two"), version="1")


@pytest.mark.parametrize(
    ("there", "field", "values"),
    [
        (ranks("nixl/LIBFABRIC", b"two"), "transport", ("nixl/UCX", "nixl/LIBFABRIC")),
        (ranks("ucx", b"two"), "transport", ("nixl/UCX", "ucx")),
        (ranks("nixl/UCX", b"two", "1.3.1"), "transport_version", ("1.5.1", "1.3.1")),
    ],
)
def test_other_transports_are_refused_with_both_values(
    there: tuple[RankInfo, ...], field: str, values: tuple[str, str]
) -> None:
    """Backends, and releases that do not go together, are a typed mismatch before any request."""
    pair = pair_of(SOURCE, replace(DESTINATION, ranks=there))
    (mismatch,) = pair.mismatches
    assert not pair.compatible
    assert (error_pb2.REASON_TRANSPORT_MISMATCH, field) == (mismatch.reason, mismatch.field)
    assert values == (mismatch.source, mismatch.destination)


def test_what_differs_harmlessly_is_a_remark() -> None:
    """A neighbouring release, and another kvferry, are shown and refuse nothing."""
    pair = pair_of(SOURCE, replace(DESTINATION, ranks=ranks("nixl/UCX", b"two", "1.4.1"), version="2"))
    assert pair.compatible
    assert 2 == len(pair.warnings)


def test_what_was_attested_decides_for_its_own_life_only() -> None:
    """Every control judges by the destination's floor and by what it attested of this life of the source."""
    route = pb.AttestedRoute(path=transfer_pb2.PATH_NIXL, backend="UCX", transport="tcp", gbytes_per_s=0.5)
    known = pb.AttestedSource(worker="p", incarnation=1, instance_id=SOURCE.instance_id, routes=[route])
    destination = replace(DESTINATION, floor=path_floor(["!*:tcp"], 1.0), attested={"p": known})
    pair = pair_of(SOURCE, destination)
    assert [route] == list(pair.routes)
    (mismatch,) = pair.mismatches
    assert (error_pb2.REASON_PATH_REFUSED, "nixl/UCX:tcp", "!*:tcp") == (
        mismatch.reason,
        mismatch.source,
        mismatch.destination,
    )
    other = pair_of(replace(SOURCE, instance_id=b"other"), destination)
    assert other.compatible
    assert [] == list(other.routes)


def test_a_pair_that_cannot_map_is_none_for_local() -> None:
    """`require_path: local` refuses workers of two hosts, and only those."""
    floor = path_floor(["local"], 0.0)
    (mismatch,) = pair_of(SOURCE, replace(DESTINATION, floor=floor)).mismatches
    assert (error_pb2.REASON_PATH_REFUSED, "local") == (mismatch.reason, mismatch.destination)
    assert pair_of(SOURCE, replace(DESTINATION, ranks=ranks("nixl/UCX", b"one"), floor=floor)).compatible
