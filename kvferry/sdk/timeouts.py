"""The two times of a pull: how long it may wait to be served, where that is bounded, and how long it may take."""

from kvferry.rpc.times import duration, seconds_of
from kvferry.sdk.arguments import checked_seconds
from kvferry.transfer.v1 import transfer_pb2 as pb

TIME_LEFT_MIN_S = 0.001


def set_timeouts(request: pb.CreateTransferRequest, timeout_s: float, queue_timeout_s: float | None) -> float:
    """Write the times of a pull; how long it may take in all, in seconds.

    Raises:
        InvalidArgument: a time is not more than 0, or too long.
    """
    total_s = checked_seconds("timeout_s", timeout_s)
    request.timeout.CopyFrom(duration(total_s))
    if queue_timeout_s is not None:
        queue_s = checked_seconds("queue_timeout_s", queue_timeout_s)
        request.queue_timeout.CopyFrom(duration(queue_s))
        total_s += queue_s
    return total_s


def shorten(request: pb.CreateTransferRequest, passed_s: float) -> None:
    """Leave a pull that is asked for again what remains of its times: first those for waiting are used up."""
    if request.HasField("queue_timeout"):
        queue_s = seconds_of(request.queue_timeout)
        request.queue_timeout.CopyFrom(duration(max(queue_s - passed_s, TIME_LEFT_MIN_S)))
        passed_s = max(passed_s - queue_s, 0.0)
    request.timeout.CopyFrom(duration(max(seconds_of(request.timeout) - passed_s, TIME_LEFT_MIN_S)))
