"""The view of the cluster: which pairs a router is offered."""

from dataclasses import replace

import pytest

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry_control.cluster import Cluster
from kvferry_control.records import PROTOCOL_VERSION, WorkerRecord

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
