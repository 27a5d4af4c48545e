"""What a read is asked to do and how it ended."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvferry.core.errors import KvferryError
from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.paths import Route
from kvferry_dataplane.peers import Peer


@dataclass(frozen=True, slots=True)
class ReadPart:
    """What comes from one source rank: copies, planned a chunk at a time, and the lease to verify after."""

    peer: Peer
    chunks: Callable[[], Iterator[CopyPlan]]
    slot: int
    word: int = field(repr=False)
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """One accepted read. Times are on the executor's clock, in seconds."""

    transfer: str
    parts: tuple[ReadPart, ...]
    total_bytes: int
    pieces_max: int
    accepted_at: float
    deadline: float
    priority: int = 0

    @property
    def lane(self) -> tuple[str, ...]:
        """Reads from the same peers wait for one another, reads from others do not."""
        return tuple(sorted({part.peer.name for part in self.parts}))


@dataclass(frozen=True, slots=True)
class PathOutcome:
    """What came from one source rank."""

    source_rank: int
    route: Route
    received_bytes: int
    descriptor_count: int


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """How a read ended. No byte of it can arrive any more."""

    transfer: str
    failure: KvferryError | None
    received_bytes: int
    descriptor_count: int
    queue_seconds: float
    read_seconds: float
    verify_seconds: float
    paths: tuple[PathOutcome, ...]
    """By source rank; empty if nothing was read."""

    @property
    def main(self) -> PathOutcome | None:
        """The path that carried most."""
        return max(self.paths, key=lambda carried: carried.received_bytes, default=None)

    @property
    def path(self) -> str:
        """Name of that path; empty if nothing was read."""
        return "" if self.main is None else self.main.route.path.value


@dataclass(frozen=True, slots=True)
class ReadBounds:
    """Limits of the executor."""

    bytes_in_flight_per_peer: int = 64 << 20
    active_reads_per_lane: int = 16
    active_pieces_max: int = 2 << 20
    step_bytes_max: int = 64 << 20
    settle_seconds: float = 0.1
    """How long the batches in flight of a read that ends early may take before a rollover."""
    retire_seconds: float = 0.3
    """How long other reads' batches may go on with an agent after a rollover."""
    orphan_seconds: float = 1.0
    """How long an idle agent keeps word reads that nobody waits for."""
