"""Which path a source rank's bytes take, and why. Pure.

The decision is made per source rank when a read's turn has come. A path that is forced and impossible refuses the read:
nothing degrades without a word.
"""

from dataclasses import dataclass
from enum import StrEnum

from kvferry.core.errors import TransportFailed


class Path(StrEnum):
    """How bytes travel."""

    LOCAL = "local"
    """Copied from the source's pool, which is mapped here."""
    NIXL = "nixl"
    PACKED = "packed"


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


def choose(policy: PathPolicy, mapped: str, why_not_mapped: str, backend: str) -> Route:
    """The route from a source whose pool is ``mapped`` (by that backend; empty if it is not, for the reason given).

    Raises:
        TransportFailed: the configured path is impossible; says why.
    """
    if mapped:
        return Route(Path.LOCAL, mapped, "same host: the source's pool is mapped")
    if policy.rule in (PathRule.LOCAL, PathRule.PACKED):
        why = why_not_mapped if policy.rule is PathRule.LOCAL else "the source does not pack"
        raise TransportFailed.of_field("path", policy.rule.value, why)
    return Route(Path.NIXL, backend, why_not_mapped)
