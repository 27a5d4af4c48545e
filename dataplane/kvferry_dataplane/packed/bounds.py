"""Bounds of both ends of the packed path."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerBounds:
    """Limits of a source."""

    connections_max: int = 128
    strangers_max: int = 16
    """Connections that have not yet named a live lease; past that, the oldest of them is dropped."""
    stranger_seconds: float = 2.0
    """How long one may stay a stranger."""
    message_seconds: float = 5.0
    """How long the rest of a request may take once its header has come."""
    send_seconds: float = 30.0
    """How long an answer may take."""
    refusals_max: int = 4096
    """Requests refused in a row after which a connection is dropped: more than one reader has in flight."""
    staging_seconds: float = 1.0
    """How long a request waits for a staging slot."""
    held_seconds: float = 30.0
    """How long a reader may leave a slot unread before its connection is dropped."""
    waiting_max: int = 256
    """Requests that come while one waits for a slot, before the connection is dropped: far more than a reader's."""


@dataclass(frozen=True, slots=True)
class ReaderBounds:
    """Limits of a reader."""

    connect_seconds: float = 2.0
    requests_in_flight: int = 1024
    """Of one connection. The bytes that they ask for are bounded by the executor."""
    drain_seconds: float = 1.0
    """How long what nobody wants any more may take to arrive before the connection is dropped."""
    held_in_flight: int = 4
    """Requests to hold that one source is asked at a time: its slots that this reader has, and those on their way."""
    lost_seconds: float = 0.5
    """How long a NIXL read into a staging slot may go on that nobody waits for, before its agent is given up."""
