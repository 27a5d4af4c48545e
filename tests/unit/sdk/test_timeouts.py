"""The times of a pull."""

import pytest

from kvferry.core.errors import InvalidArgument
from kvferry.rpc.times import seconds_of
from kvferry.sdk.timeouts import TIME_LEFT_MIN_S, set_timeouts, shorten
from kvferry.transfer.v1.transfer_pb2 import CreateTransferRequest


def request(timeout_s: float, queue_timeout_s: float | None) -> CreateTransferRequest:
    """A pull with these times."""
    made = CreateTransferRequest()
    set_timeouts(made, timeout_s, queue_timeout_s)
    return made


def total_seconds(pull: CreateTransferRequest) -> float:
    """How long a pull may take in all, as written."""
    return seconds_of(pull.timeout) + seconds_of(pull.queue_timeout)


def test_the_total_is_that_of_both_times() -> None:
    """Writing the times tells how long the pull may take in all."""
    assert 10.0 == set_timeouts(CreateTransferRequest(), 10.0, None)
    assert 12.5 == set_timeouts(CreateTransferRequest(), 10.0, 2.5)


@pytest.mark.parametrize(
    ("queue_s", "passed_s", "expected"),
    [
        (None, 4.0, (0.0, 6.0)),
        (None, 40.0, (0.0, TIME_LEFT_MIN_S)),
        (5.0, 4.0, (1.0, 10.0)),
        (5.0, 7.0, (TIME_LEFT_MIN_S, 8.0)),
    ],
)
def test_what_is_asked_again_has_the_time_that_is_left(
    queue_s: float | None, passed_s: float, expected: tuple[float, float]
) -> None:
    """Time that has passed is taken from the wait first, and then from the rest; the sum never grows."""
    pull = request(10.0, queue_s)
    before = total_seconds(pull)
    shorten(pull, passed_s)
    assert expected == pytest.approx((seconds_of(pull.queue_timeout), seconds_of(pull.timeout)))
    assert pull.HasField("queue_timeout") == (queue_s is not None)
    assert total_seconds(pull) <= max(before - passed_s, 0.0) + 2 * TIME_LEFT_MIN_S


@pytest.mark.parametrize(("field", "times"), [("timeout_s", (0.0, None)), ("queue_timeout_s", (1.0, -1.0))])
def test_a_wrong_time_is_refused_by_name(field: str, times: tuple[float, float | None]) -> None:
    """A time that is not more than nothing names its argument."""
    with pytest.raises(InvalidArgument) as caught:
        request(*times)
    assert field == caught.value.metadata["field"]
