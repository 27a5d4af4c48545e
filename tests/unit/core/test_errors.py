"""Every reason has one exception, one status and one wire value, and survives the wire."""

import copy
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import aio

from kvferry.core.errors import RETRY_AFTER_KEY, KvferryError, ResourceExhausted, error_of
from kvferry.core.reasons import Reason
from kvferry.error.v1 import error_pb2
from kvferry.rpc.errors import DETAILS_KEY, from_rpc, to_status
from kvferry.rpc.reasons import STATUS_CODES, reason_from_wire, reason_to_wire


def received(error: KvferryError) -> aio.AioRpcError:
    """What a caller gets when a server aborts with ``error``."""
    status = to_status(error)
    trailing = aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    return aio.AioRpcError(STATUS_CODES[error.reason], aio.Metadata(), trailing, details=status.message)


@pytest.mark.parametrize("reason", list(Reason))
def test_an_error_survives_the_wire(reason: Reason) -> None:
    """Class, reason, message and metadata come back as they were raised."""
    raised = error_of(reason, "what happened", {"field": "f", "value": "v"})
    caught = from_rpc(received(raised))
    assert type(raised) is type(caught)
    assert (raised.reason, raised.message, raised.metadata) == (caught.reason, caught.message, caught.metadata)


@pytest.mark.parametrize(("estimate_s", "expected_ms"), [(1.25, 1250), (None, 100)])
def test_overload_says_after_how_long_to_come_back(estimate_s: float | None, expected_ms: int) -> None:
    """The estimate of who refused is in RetryInfo and comes back to the caller; without one there is a default."""
    raised = ResourceExhausted.of_bound("max_reads", 7, "full", estimate_s)
    details = [detail for detail in to_status(raised).details if detail.type_url.endswith("google.rpc.RetryInfo")]
    found = [RetryInfo.FromString(detail.value) for detail in details]
    assert [expected_ms] == [info.retry_delay.ToMilliseconds() for info in found]
    caught = from_rpc(received(raised))
    assert (estimate_s, "max_reads", "7") == (caught.retry_after_s, caught.metadata["field"], caught.metadata["value"])


@pytest.mark.parametrize("text", ["", "-1", "1.5", "soon", "9" * 5000, "²"])
def test_a_senseless_estimate_is_none(text: str) -> None:
    """What a peer sends in place of a number of milliseconds is no reason to fail."""
    assert ResourceExhausted("full", metadata={RETRY_AFTER_KEY: text}).retry_after_s is None


def test_reasons_and_their_wire_values_are_the_same_set() -> None:
    """No reason is missing on either side."""
    named = {name.removeprefix("REASON_") for name in error_pb2.Reason.DESCRIPTOR.values_by_name} - {"UNSPECIFIED"}
    assert named == {reason.value for reason in Reason}
    assert set(STATUS_CODES) == set(Reason)
    assert all(reason is reason_from_wire(reason_to_wire(reason)) for reason in Reason)
    assert all(reason.actor is not None for reason in Reason)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.PEER_UNREACHABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE),
        (grpc.StatusCode.DATA_LOSS, Reason.INTERNAL),
    ],
)
def test_a_status_without_details_has_a_reason_too(code: grpc.StatusCode, reason: Reason) -> None:
    """What gRPC itself reports is translated by its code."""
    assert reason is from_rpc(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details="d")).reason


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy])
def test_an_error_can_be_copied(clone: Any) -> None:
    """Reason and metadata are kept by copies."""
    error = KvferryError("m", reason=Reason.FENCED, metadata={"a": "b"})
    twin = clone(error)
    assert (error.reason, error.metadata, str(error)) == (twin.reason, twin.metadata, str(twin))


def test_a_huge_value_is_cut() -> None:
    """An error never becomes larger than a message may be because its value was."""
    error = KvferryError.of_field("field", "x" * 1_000_000, "too long")
    assert len(str(error)) < 1_000
