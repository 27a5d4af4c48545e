"""Durations and times written into messages are those that are made by themselves."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, strategies as st

from kvferry.rpc.times import duration, put_duration, put_time, seconds_of, timestamp


@given(st.floats(-10, 1e7, allow_nan=False))
def test_a_duration_is_the_same_either_way(seconds: float) -> None:
    """Also over an earlier one; negative ones are zero."""
    into = Duration(seconds=7, nanos=7)
    put_duration(into, seconds)
    assert duration(seconds) == into
    assert max(seconds, 0.0) == seconds_of(into) or abs(seconds_of(into) - seconds) < 1e-8


@given(st.floats(0, 4e9, allow_nan=False))
def test_a_time_is_the_same_either_way(unix_s: float) -> None:
    """Also over an earlier one."""
    into = Timestamp(seconds=7, nanos=7)
    put_time(into, unix_s)
    assert timestamp(unix_s) == into
