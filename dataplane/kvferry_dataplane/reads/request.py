"""What a read is asked to do and how it ended."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvferry.core.errors import KvferryError
from kvferry.core.path_floor import ANY_PATH, PathFloor
from kvferry.core.planning.copies import CopyPlan, StridedCopy
from kvferry_dataplane.paths import Path, Route
from kvferry_dataplane.peers import Peer

Lane = tuple[str, ...]
"""The peers that a read is from."""


@dataclass(frozen=True, slots=True)
class ReadPart:
    """What comes from one source rank: copies, and the lease to verify after."""

    peer: Peer
    chunks: Callable[[], Iterator[CopyPlan]]
    """The copies as runs, planned a chunk at a time."""
    regions: Callable[[], tuple[StridedCopy, ...]]
    """The same copies as regions, all of them."""
    sample: Callable[[], Iterator[CopyPlan]]
    """As ``chunks``, but of few pieces."""
    slot: int
    word: int = field(repr=False)
    total_bytes: int = 0
    pieces_max: int = 0
    """Pieces before any are joined."""
    floor: PathFloor = ANY_PATH
    """Which ways it may take."""
    only: Path | None = None
    """For probes: the one path that is tried."""

    def piece_count(self) -> int:
        """About how many pieces the copies are, seen from the first of them. Takes a little planning."""
        sample = next(self.sample(), None)
        if sample is None or not sample.piece_count:
            return self.pieces_max
        return max(round(self.total_bytes * sample.piece_count / sample.total_bytes), 1)


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """One accepted read. Times are on the executor's clock, in seconds."""

    transfer: str
    parts: tuple[ReadPart, ...]
    total_bytes: int
    pieces_max: int
    accepted_at: float
    deadline: float
    """When it is over at the latest."""
    priority: int = 0
    source: str = ""
    """Whom it is from, as far as fair shares are concerned: a worker."""
    queue_deadline: float | None = None
    """When something must have been asked for; None: whenever, before the deadline."""
    service_seconds: float = 0.0
    """With a queue deadline: how long it may take from then on."""

    @property
    def lane(self) -> Lane:
        """Reads from the same peers wait for one another, reads from others do not."""
        return tuple(sorted({part.peer.name for part in self.parts}))


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
    shares: tuple["SourceShare", ...]
    """What came from each source rank; empty if nothing was asked for."""
    priority: int = 0
    compared_bytes: int = 0
    """Of those received, bytes whose checksums are those of the source."""
    checksum_seconds: float = 0.0
    """How long comparing them took."""

    @property
    def main(self) -> Route | None:
        """The route that carried most; None if nothing was asked for."""
        return max(self.shares, key=lambda share: share.received_bytes).route if self.shares else None


@dataclass(frozen=True, slots=True)
class SourceShare:
    """What came from one source rank."""

    source_rank: int
    route: Route
    received_bytes: int
    descriptor_count: int
    device_seconds: float
    """How long a device copied, on its own clock; 0 if none did."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How a part is asked for on one path."""

    bytes_max: int
    descriptors_max: int
    in_flight_per_read: int


@dataclass(frozen=True, slots=True)
class ReadBounds:
    """Limits of the executor."""

    transport: BatchLimits = BatchLimits(32 << 20, 1024, 2)
    packed: BatchLimits = BatchLimits(4 << 20, 1 << 16, 4)
    local: BatchLimits = BatchLimits(64 << 20, 1 << 62, 64)
    """Copiers take as many pieces at once as there are."""
    device: BatchLimits = BatchLimits(1 << 62, 1 << 62, 64)
    """A device copies a plan whole, in less time than it takes to hand it several parts of it."""
    bytes_in_flight_per_peer: int = 64 << 20
    """Of the transport's reads."""
    bytes_in_flight_max: int = 512 << 20
    """Of all paths and sources, shared between them; a source that has nothing in flight may always ask for a batch."""
    active_reads_per_lane: int = 16
    active_pieces_max: int = 2 << 20
    step_bytes_max: int = 64 << 20
    patience_seconds: float = 1.0
    """How long a read may be kept back by reads of higher priorities before it gets a turn all the same."""
    settle_seconds: float = 0.1
    """How long the batches in flight of a read that ends early may take before a rollover."""
    retire_seconds: float = 0.2
    """How long other reads' batches may go on with an agent after a rollover."""
    orphan_seconds: float = 1.0
    """How long an idle agent keeps word reads that nobody waits for."""

    at_once_bytes_max: int = 2 << 20
    """A read of mapped memory of at most so many bytes, that is alone, is done by who asks for it."""
    at_once_device_bytes_max: int = 64 << 20
    """The same where a device copies."""
    at_once_seconds: float = 300e-6
    """So long such a read is waited for."""

    def reads_at_once(self, route: Route, request: ReadRequest) -> bool:
        """Whether what comes by a route is little enough to be read on the spot."""
        most = self.at_once_device_bytes_max if route.is_device_copy else self.at_once_bytes_max
        return route.path is Path.LOCAL and request.total_bytes <= most

    def limits(self, route: Route) -> BatchLimits:
        """Those of a route."""
        if route.is_device_copy:
            return self.device
        return {Path.PACKED: self.packed, Path.LOCAL: self.local}.get(route.path, self.transport)
