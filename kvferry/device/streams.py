"""What became of bytes that were sent or received by way of a stream socket."""

from enum import IntEnum
from typing import NamedTuple


class StreamEnd(IntEnum):
    """How a transfer came to its end. What it did until then stands."""

    COMPLETE = 0
    CANCELLED = 1
    CLOSED = 2
    """The other end closed, or the connection failed."""
    TIMED_OUT = 3


class StreamOutcome(NamedTuple):
    """How a transfer ended."""

    end: StreamEnd
    moved_bytes: int
    error_number: int
    """Of a connection that failed; 0 where the other end closed it in an orderly way."""
