"""Whether the transports of two workers go together, and what differs between them. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvferry.core.pairing import Mismatch
from kvferry.core.reasons import Reason

_MINOR = re.compile(r"(\d+)\.(\d+)")


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
    def minor(self) -> str:
        """The version up to its second number; the whole of one that has no such numbers."""
        match = _MINOR.match(self.version)
        return match[0] if match is not None else self.version


def can_map(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> bool:
    """Whether every rank of the destination would map every one of the source: then no transport is needed."""
    hosts = {rank.host_id for rank in (*source, *destination)}
    return len(hosts) == 1 and b"" not in hosts and all(rank.maps_same_host for rank in destination)


def transport_mismatches(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> tuple[Mismatch, ...]:
    """Why the destination's ranks cannot read the source's; empty if they can, or need no transport to.

    Where memory is mapped the transport is not used; but that a pool could not be mapped after all is found out only by
    trying, and would then end each pull as TRANSPORT_FAILED.
    """
    if can_map(source, destination):
        return ()
    return tuple(_differences(source, destination))


def transport_warnings(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> tuple[str, ...]:
    """What differs and is not known to do harm, for people."""
    found = []
    theirs, ours = (_said(rank.method for rank in side) for side in (source, destination))
    if theirs != ours and can_map(source, destination):
        found.append(f"transports differ, source {theirs}, destination {ours}: only mapped memory can be read")
    theirs, ours = (_said(rank.version or "unknown" for rank in side) for side in (source, destination))
    if theirs != ours:
        found.append(f"versions of the transport's library differ: source {theirs}, destination {ours}")
    return tuple(found)


def _differences(source: Sequence[RankTransport], destination: Sequence[RankTransport]) -> Iterator[Mismatch]:
    theirs, ours = ({rank.method for rank in side} for side in (source, destination))
    if len(theirs | ours) > 1:
        yield Mismatch("transport", _said(theirs), _said(ours), Reason.TRANSPORT_MISMATCH)
        return
    known = [[rank.minor for rank in side if rank.version] for side in (source, destination)]
    if len({*known[0], *known[1]}) > 1:
        versions = [_said(rank.version or "unknown" for rank in side) for side in (source, destination)]
        yield Mismatch("transport_version", versions[0], versions[1], Reason.TRANSPORT_MISMATCH)


def _said(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))
