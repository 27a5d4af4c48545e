"""Results: from the wire, and as JSON."""

import json
from datetime import UTC, datetime

import pytest

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry.core.reasons import Reason
from kvferry.error.v1 import error_pb2
from kvferry.publication.v1 import publication_pb2
from kvferry.rpc.layouts import layout_to_wire
from kvferry.sdk.convert import publication_of, transfer_of, worker_of
from kvferry.sdk.results import Path, PublicationState, Role, TransferState, WorkerState
from kvferry.transfer.v1 import transfer_pb2
from kvferry.worker.v1 import worker_pb2


@pytest.mark.parametrize(
    ("wire", "prefix", "values"),
    [
        (worker_pb2.Role, "ROLE_", Role),
        (worker_pb2.WorkerState, "WORKER_STATE_", WorkerState),
        (publication_pb2.PublicationState, "PUBLICATION_STATE_", PublicationState),
        (transfer_pb2.TransferState, "TRANSFER_STATE_", TransferState),
        (transfer_pb2.Path, "PATH_", Path),
    ],
)
def test_enums_follow_the_contract(wire: object, prefix: str, values: type) -> None:
    """Every enum has the contract's values, in the contract's order, under the contract's names."""
    pairs: list[tuple[str, int]] = wire.items()  # type: ignore[attr-defined]
    members: list[str] = [member.value for member in values]  # type: ignore[attr-defined]
    assert [number for _, number in pairs] == list(range(len(members)))
    assert [name.removeprefix(prefix).lower() for name, _ in pairs][1:] == members[1:]


def test_transfer_of_two_paths() -> None:
    """A transfer whose ranks took two paths says both; times are seconds, the failure its reason and rank."""
    wire = transfer_pb2.Transfer(
        name="transfers/t",
        state=transfer_pb2.TRANSFER_STATE_FAILED,
        failure=transfer_pb2.Failure(reason=error_pb2.REASON_FENCED, message="m", rank=0),
        ranks=[
            transfer_pb2.RankFigures(rank=0, path=transfer_pb2.PATH_NIXL, backend="UCX"),
            transfer_pb2.RankFigures(rank=1, path=transfer_pb2.PATH_LOCAL),
            transfer_pb2.RankFigures(rank=2),
        ],
    )
    wire.negotiate_time.FromMicroseconds(1_500)
    wire.create_time.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC))
    result = transfer_of(wire)
    assert (result.path, result.backend) == ("local+nixl", "UCX")
    assert (result.reason, result.failed_rank) == (Reason.FENCED, 0)
    assert result.negotiate_s == pytest.approx(0.0015)
    assert result.create_time == datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
    assert result.end_time is None
    written = json.loads(json.dumps(result.to_dict()))
    assert written["create_time"] == "2026-01-02T03:04:05.600000+00:00"
    assert (written["state"], written["reason"], written["ranks"][1]["path"]) == ("failed", "FENCED", "local")


def test_transfer_that_read_nothing() -> None:
    """A transfer of which nothing was read has the path `none` and no failure."""
    result = transfer_of(transfer_pb2.Transfer(state=transfer_pb2.TRANSFER_STATE_NEGOTIATING))
    assert (result.path, result.reason, result.failed_rank) == ("none", None, None)


def test_worker_with_its_layout() -> None:
    """A worker's layout comes back as it was declared, and is written by field name."""
    layout = dense_layout(DenseModel("m", 2, 2, 8, 16, ElementType.FLOAT16), 4, tensor_parallel=2)
    wire = worker_pb2.Worker(name="workers/w", role=worker_pb2.ROLE_PREFILL, layout=layout_to_wire(layout))
    worker = worker_of(wire)
    assert worker.layout == layout
    written = json.loads(json.dumps(worker.to_dict()))
    placement = written["layout"]["ranks"][1]["placements"][0]
    assert placement["strides"]["dim"] == 2
    assert placement["heads"] == [1]


def test_publication_without_its_handle() -> None:
    """A handle is in no repr and no JSON."""
    publication = publication_of(publication_pb2.Publication(name="publications/p"), b"secret")
    assert publication.handle == b"secret"
    assert "secret" not in repr(publication)
    assert "secret" not in str(publication.to_dict())
