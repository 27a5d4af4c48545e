"""Which path a source rank's bytes take, and why. Pure.

The decision is made per source rank when a read's turn has come. A path that is forced and impossible refuses the read:
nothing degrades without a word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from kvferry.core.errors import TransportFailed
from kvferry_dataplane.packed.costs import Verdict

PACKED_BACKEND = "stream"


class Path(StrEnum):
    """How bytes travel."""

    LOCAL = "local"
    """Copied from the source's pool, which is mapped here."""
    NIXL = "nixl"
    """Read by NIXL, piece by piece."""
    PACKED = "packed"
    """Sent by the source as one stream."""


class PathRule(StrEnum):
    """Which path the operator wants."""

    AUTO = "auto"
    """The fastest that is possible."""
    LOCAL = "local"
    NIXL = "nixl"
    PACKED = "packed"


class SameHost(StrEnum):
    """What data planes of one host do with each other's memory."""

    FUSED = "fused"
    """Map it, and copy a whole plan at once."""
    BACKEND = "backend"
    """Never map it: the backend moves the bytes as it does between hosts."""


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """What is configured."""

    rule: PathRule = PathRule.AUTO
    same_host: SameHost = SameHost.FUSED


@dataclass(frozen=True, slots=True)
class Route:
    """The path of one source rank's bytes in one read."""

    path: Path
    backend: str
    """What lies below the path, for example `UCX`, `memory` or `cuda`."""
    choice: str
    """Why this path and no faster one, for people."""


def why_not_to_map(policy: PathPolicy, own_host: bytes, source_host: bytes) -> str:
    """Why a source's memory is not even tried to be mapped; empty if it is worth trying.

    A host id is empty where nothing is shared.
    """
    if policy.rule not in (PathRule.AUTO, PathRule.LOCAL):
        return f"path={policy.rule} is configured"
    if policy.same_host is SameHost.BACKEND:
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


def choose(
    policy: PathPolicy, mapping: Mapping, backend: str, packing: Callable[[], Verdict] | None, *, has_bytes: bool
) -> Route:
    """The route of what comes from a source.

    ``packing`` weighs the packed path against NIXL's ``backend``; None: the source does not pack, or not for this pool.
    Where there are no bytes, only the lease word is read, and that is NIXL's, unless the pool is mapped.

    Raises:
        TransportFailed: the configured path is impossible; says why.
    """
    if mapping.backend:
        return Route(Path.LOCAL, mapping.backend, "same host: the source's pool is mapped")
    match policy.rule:
        case PathRule.LOCAL:
            raise TransportFailed.of_field("path", policy.rule.value, mapping.why_not)
        case PathRule.PACKED if packing is None:
            raise TransportFailed.of_field("path", policy.rule.value, "the source does not pack")
        case PathRule.PACKED if has_bytes:
            return Route(Path.PACKED, PACKED_BACKEND, f"path={policy.rule} is configured")
        case PathRule.PACKED | PathRule.NIXL:
            return Route(Path.NIXL, backend, f"path={policy.rule} is configured")
    if packing is None or not has_bytes:
        return Route(Path.NIXL, backend, f"{mapping.why_not}; the source does not pack")
    verdict = packing()
    choice = f"{mapping.why_not}; {verdict.choice}"
    return Route(Path.PACKED, PACKED_BACKEND, choice) if verdict.packed else Route(Path.NIXL, backend, choice)
