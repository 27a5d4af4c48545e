"""Durations and times between seconds and their wire forms."""

import math

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kvferry.core.errors import InvalidArgument

_NS_PER_S = 1_000_000_000


def duration(seconds: float) -> Duration:
    """``seconds`` as a Duration, negative ones as zero."""
    nanos = max(0, round(seconds * _NS_PER_S))
    return Duration(seconds=nanos // _NS_PER_S, nanos=nanos % _NS_PER_S)


def put_duration(into: Duration, seconds: float) -> None:
    """Write :func:`duration` where it belongs: to make one and copy it into a message takes twice as long."""
    nanos = round(seconds * _NS_PER_S) if seconds > 0 else 0
    into.seconds, into.nanos = nanos // _NS_PER_S, nanos % _NS_PER_S


def seconds_of(wire: Duration) -> float:
    """A Duration in seconds."""
    return wire.seconds + wire.nanos / _NS_PER_S


def checked_seconds(field: str, wire: Duration, bound: float) -> float:
    """A Duration of a request, in seconds.

    Raises:
        InvalidArgument: it is not more than 0 and at most ``bound``; names ``field`` and the value.
    """
    seconds = seconds_of(wire)
    if not math.isfinite(seconds) or not 0 < seconds <= bound:
        raise InvalidArgument.of_field(field, f"{seconds} s", f"must be more than 0 and at most {bound} s")
    return seconds


def timestamp(unix_s: float) -> Timestamp:
    """Seconds since the epoch as a Timestamp."""
    nanos = round(unix_s * _NS_PER_S)
    return Timestamp(seconds=nanos // _NS_PER_S, nanos=nanos % _NS_PER_S)


def put_time(into: Timestamp, unix_s: float) -> None:
    """Write :func:`timestamp` where it belongs, as :func:`put_duration` does."""
    nanos = round(unix_s * _NS_PER_S)
    into.seconds, into.nanos = nanos // _NS_PER_S, nanos % _NS_PER_S
