"""What pulls raise."""

import copy
from dataclasses import replace

import pytest

from kvferry.core.errors import Fenced, KvferryError, KvGoneError, PeerError, RetryableError
from kvferry.core.reasons import Reason
from kvferry.sdk.failures import PullFailed, destination_settled, failure_of, pull_failed
from kvferry.sdk.results import TransferResult, TransferState


def failed(reason: Reason, settled: bool = True) -> TransferResult:
    """A transfer that failed."""
    return TransferResult(
        name="transfers/t",
        request_id="r",
        state=TransferState.FAILED,
        destination_settled=settled,
        reason=reason,
        message="why",
        failed_rank=3,
    )


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_its_class(reason: Reason) -> None:
    """A failed pull is of the class of its reason and a PullFailed, whatever the reason."""
    error = failure_of(failed(reason))
    plain = KvferryError if reason is Reason.INTERNAL else type(error).__mro__[2]
    assert isinstance(error, PullFailed)
    assert isinstance(error, plain)
    assert error.reason is reason
    assert error.metadata == {"transfer": "transfers/t", "rank": "3"}


def test_branches_of_the_tree_catch_it() -> None:
    """A fenced pull is a Fenced and a KvGoneError, and no RetryableError."""
    error = failure_of(failed(Reason.FENCED))
    assert isinstance(error, Fenced)
    assert isinstance(error, KvGoneError)
    assert not isinstance(error, RetryableError)
    assert type(error).__name__ == "Fenced"


def test_copy_keeps_what_is_known() -> None:
    """A failed pull that crosses processes or is copied keeps its transfer and its settledness."""
    error = copy.copy(failure_of(failed(Reason.PEER_LOST, settled=False)))
    assert isinstance(error, PeerError)
    assert isinstance(error, PullFailed)
    assert error.transfer == failed(Reason.PEER_LOST, settled=False)
    assert error.destination_settled is False


def test_settledness_is_found_behind_a_cause() -> None:
    """destination_settled looks through causes; an error that is no pull's leaves the blocks settled."""
    outer = RuntimeError("outer")
    outer.__cause__ = failure_of(failed(Reason.PEER_LOST, settled=False))
    assert destination_settled(outer) is False
    assert destination_settled(ValueError()) is True
    assert destination_settled(pull_failed(Fenced("x"))) is True


def test_a_refused_pull_says_when_to_come_back() -> None:
    """The worker's estimate is on the error that a refused pull raises."""
    refused = replace(failed(Reason.RESOURCE_EXHAUSTED), retry_after_s=0.75)
    assert 0.75 == failure_of(refused).retry_after_s
    assert failure_of(failed(Reason.RESOURCE_EXHAUSTED)).retry_after_s is None
