"""Which path a source rank's bytes take, and why. Pure.

The decision is made per source rank when a read's turn has come. A path that is forced and impossible refuses the
read: nothing degrades without a word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from kvferry.core.errors import TransportFailed
from kvferry_dataplane.packed.costs import Verdict


class Path(StrEnum):
    """How bytes travel."""

    NIXL = "nixl"
    """Read by NIXL, piece by piece."""
    PACKED = "packed"
    """Sent by the source as one stream."""


class PathRule(StrEnum):
    """Which path the operator wants."""

    AUTO = "auto"
    """The fastest that is possible."""
    NIXL = "nixl"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """What is configured."""

    rule: PathRule = PathRule.AUTO


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How a path wants a plan to be cut, and how many batches of one read it wants in flight."""

    bytes_max: int
    pieces_max: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Route:
    """The path of one source rank's bytes in one read."""

    path: Path
    backend: str
    """What lies below the path, for example `UCX`, `memory` or `cuda`."""
    choice: str
    """Why this path and no faster one, for people."""
    limits: BatchLimits

    @property
    def is_ours(self) -> bool:
        """Whether our own threads write the bytes: a batch that ended, in whatever way, writes no more, and says so
        by itself. Of a backend's batch only success says that, or the end of its agent, and it has to be polled.
        """
        return self.path is not Path.NIXL


def choose_packed(policy: PathPolicy, can_pack: bool, verdict: Callable[[], Verdict]) -> tuple[bool, str]:
    """Whether to pack, and why. ``can_pack``: whether the source packs for others.

    Raises:
        TransportFailed: it is configured and impossible.
    """
    match policy.rule:
        case PathRule.PACKED if not can_pack:
            raise TransportFailed("path=packed is configured, and the source does not pack")
        case PathRule.PACKED | PathRule.NIXL:
            return policy.rule is PathRule.PACKED, f"path={policy.rule} is configured"
    if not can_pack:
        return False, "the source does not pack"
    judged = verdict()
    return judged.packed, judged.choice
