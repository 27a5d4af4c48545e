"""Whether the transports of two workers go together, and what differs between them. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvferry.core.pairing import Mismatch
from kvferry.core.reasons import Reason

_MINOR = re.compile(r"(\d+)\.(\d+)")
_NIXL = "nixl"
_UCX = "UCX"
MINOR_SKEW_MAX = 1
"""Of NIXL's releases. Tried with 1.2 to 1.5: neighbours read each other, and a source of 1.3 or older crashes, whole,
when a reader of 1.5 reaches it by other means than TCP."""


@dataclass(frozen=True, slots=True)
class RankTransport:
    """What a rank says of its transport."""

    method: str
    """For example ``nixl/UCX``."""
    version: str
    """Of the library behind it; empty: not known."""
    host_id: bytes
    """Of the kernel that it lives on; empty: it shares no memory."""
    maps_same_host: bool
    """Whether it maps the memory of others of its host."""

    @property
    def release(self) -> tuple[int, int] | None:
        """The first two numbers of its version; None: not known."""
        match = _MINOR.match(self.version)
        return (int(match[1]), int(match[2])) if match is not None else None


def way_of(method: str) -> tuple[str, str]:
    """The path and the backend of what a transport reads by itself."""
    path, _, backend = method.partition("/")
    return path, backend or _UCX


def can_map(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> bool:
    """Whether every rank of the destination would map every one of the source: then no transport is needed."""
    return share_host(source, destination) and all(rank.maps_same_host for rank in destination)


def share_host(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> bool:
    """Whether all ranks are known to live on one host."""
    hosts = {rank.host_id for rank in (*source, *destination)}
    return len(hosts) == 1 and b"" not in hosts


def transport_mismatches(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> tuple[Mismatch, ...]:
    """Why the destination's ranks cannot read the source's; empty if they can, or need no transport to.

    Where memory is mapped the transport is not used. That a pool cannot be mapped after all, say because two containers
    share no sockets, is found out only by trying, and then ends each pull with an error.
    """
    if can_map(source, destination):
        return ()
    return tuple(_differences(source, destination))


def transport_warnings(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> tuple[str, ...]:
    """What differs and is not known to do harm, for people."""
    found = []
    theirs, ours = (_said(rank.method for rank in side) for side in (source, destination))
    if theirs != ours and can_map(source, destination):
        found.append(f"transports differ: source {theirs}, destination {ours}; only mapped memory can be read")
    theirs, ours = (_said(rank.version or "unknown" for rank in side) for side in (source, destination))
    if theirs != ours:
        found.append(f"versions of the transport's library differ: source {theirs}, destination {ours}")
    return tuple(found)


def _differences(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> Iterator[Mismatch]:
    methods = {rank.method for rank in (*source, *destination)}
    if len(methods) > 1:
        theirs, ours = (_said(rank.method for rank in side) for side in (source, destination))
        yield Mismatch("transport", theirs, ours, Reason.TRANSPORT_MISMATCH)
    elif any(way_of(method)[0] == _NIXL for method in methods) and _too_far_apart(source, destination):
        theirs, ours = (_said(rank.version or "unknown" for rank in side) for side in (source, destination))
        yield Mismatch("transport_version", theirs, ours, Reason.TRANSPORT_MISMATCH)


def _too_far_apart(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> bool:
    releases = [rank.release for rank in (*source, *destination) if rank.release is not None]
    majors, minors = ([release[place] for release in releases] for place in (0, 1))
    return len(set(majors)) > 1 or (bool(minors) and max(minors) - min(minors) > MINOR_SKEW_MAX)


def _said(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))
