"""Which path a source rank's bytes take, and why. Pure.

The decision is made per source rank when a read's turn has come. A path that is forced and impossible refuses the read:
nothing degrades without a word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from kvferry.core.backends import Transport
from kvferry.core.errors import PathRefused, TransportFailed
from kvferry.core.path_floor import PathFloor
from kvferry_dataplane.packed.costs import Verdict

STREAM_BACKEND = "stream"
STREAM_TRANSPORT = "tcp"
DEVICE_BACKEND = "cuda"


class Path(StrEnum):
    """How bytes travel."""

    LOCAL = "local"
    """Copied from the source's pool, which is mapped here."""
    NIXL = "nixl"
    """Read by NIXL, piece by piece."""
    PACKED = "packed"
    """Sent by the source as one stream."""
    UCX = "ucx"
    """Read by UCX without NIXL, piece by piece."""


class PathRule(StrEnum):
    """Which path the operator wants."""

    AUTO = "auto"
    """The fastest that is possible."""
    LOCAL = "local"
    NIXL = "nixl"
    PACKED = "packed"
    UCX = "ucx"


class SameHost(StrEnum):
    """What data planes of one host do with each other's memory."""

    FUSED = "fused"
    """Map it, and copy a whole plan at once."""
    BACKEND = "backend"
    """Never map it: the backend moves the bytes as it does between hosts. Others may still map this one's."""
    OFF = "off"
    """Neither map it nor show one's own: either way the pair is read as if there were two hosts."""


class PackWire(StrEnum):
    """What carries packed chunks."""

    AUTO = "auto"
    """NIXL where there is RDMA and the source has staging slots, else the stream."""
    STREAM = "stream"
    """Sent by the source over TCP."""
    NIXL = "nixl"
    """Held by the source in staging slots, and read from there."""


@dataclass(frozen=True, slots=True)
class WireRule:
    """Which of them this data plane takes."""

    wanted: PackWire = PackWire.AUTO
    has_rdma: bool = False

    @property
    def wants_slots(self) -> bool:
        """Whether chunks are read by NIXL where that can be."""
        return self.wanted is PackWire.NIXL or (self.wanted is PackWire.AUTO and self.has_rdma)

    def of(self, source_has_slots: bool) -> PackWire:
        """How to read a source that packs.

        Raises:
            TransportFailed: it has no staging slots, and no other way is allowed.
        """
        if not self.wants_slots:
            return PackWire.STREAM
        if source_has_slots:
            return PackWire.NIXL
        if self.wanted is PackWire.NIXL:
            raise TransportFailed.of_field("pack_wire", self.wanted.value, "the source has no staging slots")
        return PackWire.STREAM


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """What is configured."""

    rule: PathRule = PathRule.AUTO
    same_host: SameHost = SameHost.FUSED
    wire: WireRule = WireRule()

    @property
    def maps_same_host(self) -> bool:
        """Whether pools of this host are mapped."""
        return self.rule in (PathRule.AUTO, PathRule.LOCAL) and self.same_host is SameHost.FUSED


@dataclass(frozen=True, slots=True)
class Route:
    """The path of one source rank's bytes in one read."""

    path: Path
    backend: str
    """What lies below the path, for example `UCX`, `memory` or `cuda`."""
    choice: str
    """Why this path and no faster one, for people."""

    @property
    def is_device_copy(self) -> bool:
        """Whether a device copies, from and to what is mapped there."""
        return self.path is Path.LOCAL and self.backend == DEVICE_BACKEND


def why_not_to_map(policy: PathPolicy, own_host: bytes, source_host: bytes) -> str:
    """Why a source's memory is not even tried to be mapped; empty if it is worth trying.

    A host id is empty where nothing is shared.
    """
    if policy.rule not in (PathRule.AUTO, PathRule.LOCAL):
        return f"path={policy.rule} is configured"
    if policy.same_host is not SameHost.FUSED:
        return f"same_host={policy.same_host} is configured"
    if not own_host or not source_host:
        return f"the {'source' if own_host else 'destination'} does not share its memory"
    if own_host != source_host:
        return "the source is on another host"
    return ""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Whether a source's pool is mapped."""

    backend: str
    """What copies from it, `memory` or `cuda`; empty if it is not mapped."""
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Packing:
    """A source that packs."""

    weigh: Callable[[], Verdict]
    """Weighs the packed path against NIXL's."""
    has_slots: bool
    """Whether it holds chunks for NIXL."""


def check_transport(own: Transport, source: Transport, why_not_mapped: str) -> None:
    """See to it that a source that is not mapped can be read.

    Raises:
        TransportFailed: it speaks another transport.
    """
    if own is not source:
        raise TransportFailed.of_field("transport", source.value, f"this data plane speaks {own}, and {why_not_mapped}")


def choose_only(
    policy: PathPolicy, mapping: Mapping, transport: Transport, packing: Packing | None, path: Path
) -> Route:
    """The route of a probe of one path; it has nothing to do with what would be fastest.

    Raises:
        TransportFailed: the path is impossible here; says why.
    """
    if path is Path.LOCAL:
        if not mapping.backend:
            raise TransportFailed.of_field("path", path.value, mapping.why_not)
        return Route(Path.LOCAL, mapping.backend, "a probe")
    if packing is None:
        raise TransportFailed.of_field("path", path.value, "the source does not pack")
    return _packed(policy, packing, transport, "a probe")


def permitted(
    floor: PathFloor, policy: PathPolicy, mapping: Mapping, transport: Transport, packing: Packing | None
) -> tuple[Mapping, Packing | None]:
    """What is left to choose from where only some ways may be taken."""
    if mapping.backend and not floor.may_take(Path.LOCAL, mapping.backend):
        mapping = Mapping("", f"require_path does not allow {Path.LOCAL}/{mapping.backend}")
    if packing is not None:
        streams = policy.wire.of(packing.has_slots) is PackWire.STREAM
        # The stream is a TCP connection, whoever reports what.
        way = (STREAM_BACKEND, STREAM_TRANSPORT) if streams else (transport.backend, None)
        packing = packing if floor.may_take(Path.PACKED, *way) else None
    return mapping, packing


def check_permitted(floor: PathFloor, route: Route) -> Route:
    """The route, if it may be taken.

    Raises:
        PathRefused: it may not, and no other one is possible.
    """
    if floor.may_take(route.path, route.backend):
        return route
    there, demanded = f"{route.path}/{route.backend}", ", ".join(floor.require_path)
    raise PathRefused(
        f"require_path={demanded}: the only way there is {there} ({route.choice})",
        metadata={"field": "require_path", "source": there, "destination": demanded},
    )


def mapped_route(mapping: Mapping) -> Route:
    """The route of what comes from a pool that is mapped: no other is as fast."""
    return Route(Path.LOCAL, mapping.backend, "same host: the source's pool is mapped")


def choose(
    policy: PathPolicy, mapping: Mapping, transport: Transport, packing: Packing | None, *, has_bytes: bool
) -> Route:
    """The route of what comes from a source.

    ``transport`` is the one that both sides have. ``packing``: None for a source that does not pack. Where there are no
    bytes, only the lease word is read, and that is the transport's, unless the pool is mapped.

    Raises:
        TransportFailed: the configured path is impossible; says why.
    """
    if mapping.backend:
        return mapped_route(mapping)
    match policy.rule:
        case PathRule.LOCAL:
            raise TransportFailed.of_field("path", policy.rule.value, mapping.why_not)
        case PathRule.PACKED if packing is None:
            raise TransportFailed.of_field("path", policy.rule.value, "the source does not pack")
        case PathRule.PACKED if has_bytes and packing is not None:
            return _packed(policy, packing, transport, f"path={policy.rule} is configured")
        case PathRule.PACKED | PathRule.NIXL | PathRule.UCX:
            return _unpacked(transport, f"path={policy.rule} is configured")
    if packing is None or not has_bytes:
        why = "there is nothing to read but the lease word" if not has_bytes else "the source does not pack"
        return _unpacked(transport, f"{mapping.why_not}; {why}")
    if policy.wire.wanted is PackWire.NIXL and not packing.has_slots:
        return _unpacked(transport, f"{mapping.why_not}; pack_wire=nixl, and the source has no staging slots")
    verdict = packing.weigh()
    choice = f"{mapping.why_not}; {verdict.choice}"
    return _packed(policy, packing, transport, choice) if verdict.packed else _unpacked(transport, choice)


def _unpacked(transport: Transport, choice: str) -> Route:
    return Route(Path(transport.method), transport.backend, choice)


def _packed(policy: PathPolicy, packing: Packing, transport: Transport, choice: str) -> Route:
    if policy.wire.of(packing.has_slots) is PackWire.NIXL:
        return Route(Path.PACKED, transport.backend, choice)
    if policy.wire.wants_slots:
        choice += "; streamed, since the source has no staging slots"
    return Route(Path.PACKED, STREAM_BACKEND, choice)
