"""What the clients give back: frozen values with units in their names (seconds as float, bytes as int)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from kvferry.core.layouts import WorkerLayout
from kvferry.core.reasons import Reason
from kvferry.sdk.records import Record


class Role(StrEnum):
    """What a worker is for."""

    UNKNOWN = "unknown"
    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class WorkerState(StrEnum):
    """Whether a worker takes work."""

    UNKNOWN = "unknown"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    ENGINE_LOST = "engine_lost"


class PublicationState(StrEnum):
    """Where a publication stands; ``is_ended`` once the blocks are the engine's again."""

    UNKNOWN = "unknown"
    LEASING = "leasing"
    LIVE = "live"
    ENDING = "ending"
    RELEASED = "released"
    EXPIRED = "expired"
    FAILED = "failed"

    @property
    def is_ended(self) -> bool:
        """Whether the state is final."""
        return self in _ENDED


class TransferState(StrEnum):
    """Where a transfer stands."""

    UNKNOWN = "unknown"
    NEGOTIATING = "negotiating"
    READING = "reading"
    SETTLING = "settling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SWITCHING = "switching"

    @property
    def is_terminal(self) -> bool:
        """Whether the state is final."""
        return self in _TERMINAL


_ENDED = frozenset({PublicationState.RELEASED, PublicationState.EXPIRED, PublicationState.FAILED})
_TERMINAL = frozenset({TransferState.SUCCEEDED, TransferState.FAILED, TransferState.CANCELLED})


class Path(StrEnum):
    """How bytes travelled."""

    NONE = "none"
    LOCAL = "local"
    NIXL = "nixl"
    PACKED = "packed"
    UCX = "ucx"


@dataclass(frozen=True, slots=True)
class Rank(Record):
    """A rank of a worker, as registered."""

    rank: int
    device: str
    """``cpu`` or ``cuda:N``."""
    pool_bytes: int
    method: str
    """Transfer method and backend, for example ``nixl/UCX``."""
    method_version: str = ""
    """Of the library behind it."""


@dataclass(frozen=True, slots=True)
class Worker(Record):
    """A live worker."""

    name: str
    """``workers/{worker}``."""
    incarnation: int
    role: Role
    state: WorkerState
    endpoint: str
    """host:port of its control."""
    layout: WorkerLayout | None
    """None until an engine has declared it."""
    ranks: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class ClusterView(Record):
    """All live workers, as one control saw them."""

    workers: tuple[Worker, ...]
    """In order of their names."""
    revision: int
    """Grows with every view of the same control; not comparable between endpoints."""
    etcd_connected: bool
    """Whether etcd answered that control."""
    endpoint: str
    """The control that said so."""


@dataclass(frozen=True, slots=True)
class Mismatch(Record):
    """One reason why two workers cannot be paired."""

    reason: Reason
    field: str
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class AttestedRoute(Record):
    """A way between two workers, as the decode worker found it by reading real bytes; of its slowest pair of ranks."""

    path: Path
    backend: str
    transport: str
    """What the backend used, by its own report: ``cma``, ``tcp``, ``rc_mlx5``, ...; empty where it did not say."""
    device: str
    gbytes_per_s: float
    """Of pieces of 1 MiB."""
    small_gbytes_per_s: float
    """Of pieces of 4 KiB."""
    latency_s: float
    degraded: bool
    """Whether more than half of the highest rate is lost."""
    best_gbytes_per_s: float
    """The highest rate that it was ever attested with."""
    rank_pair_count: int
    note: str
    """How the backend reads, or why it did not say what it used."""


@dataclass(frozen=True, slots=True)
class Pair(Record):
    """Whether KV can move from one worker to another, and every reason why not."""

    source: str
    source_incarnation: int
    destination: str
    destination_incarnation: int
    compatible: bool
    mismatches: tuple[Mismatch, ...]
    draining: tuple[str, ...] = ()
    """``workers/{worker}`` of those of the two that drain: no new work, but what is published can be pulled."""
    routes: tuple[AttestedRoute, ...] = ()
    """Ways that pulls may take, attested at the first of them; empty before."""
    attestation_refusal: str = ""
    """Why some could not be attested."""
    warnings: tuple[str, ...] = ()
    """What differs between the two and is not known to do harm."""


@dataclass(frozen=True, slots=True)
class Publication(Record):
    """Blocks pinned for readers, as they stood when control last spoke of them."""

    name: str
    """``publications/{publication}``."""
    state: PublicationState
    token_count: int
    block_count: int
    """On each rank, over all groups."""
    expected_reader_count: int
    finished_reader_count: int
    active_reader_count: int
    create_time: datetime | None
    time_left_s: float
    """How long the leases still held when this was said; 0 once it has ended."""
    handle: bytes = field(default=b"", repr=False)
    """For the decode engine. Secret: it lets its bearer read the blocks. Empty in what routers see."""


@dataclass(frozen=True, slots=True)
class HeldPublication(Record):
    """A live publication with all that its engine needs to go on with it after a restart."""

    publication: Publication
    """With its handle."""
    request_id: str
    blocks: Mapping[str, tuple[int, ...]]
    """By layer group: leave them alone until the publication has ended."""


class DrainState(StrEnum):
    """Where a worker's drain stands."""

    UNKNOWN = "unknown"
    NONE = "none"
    DRAINING = "draining"
    ENDING = "ending"
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class Drain(Record):
    """A worker on its way out of service."""

    worker: str
    """``workers/{worker}``."""
    state: DrainState
    live_publication_count: int
    active_transfer_count: int
    time_left_s: float | None
    """After this, what is left is ended; None where there is no such bound."""
    exits: bool
    """Whether the control ends once nothing is left."""
    leaving_ranks: tuple[int, ...]
    """Ranks whose data planes were told to end."""


@dataclass(frozen=True, slots=True)
class PathFigures(Record):
    """What one destination rank read from one source rank."""

    source_rank: int
    path: Path
    backend: str
    received_bytes: int
    descriptor_count: int
    choice: str
    """Why this path was taken and no faster one, for people."""
    device_s: float = 0.0
    """How long a device copied, on its own clock; 0 if none did."""
    attempt: int = 0
    """Which of the transfer's sources it was, counted from 0 in the order in which they were tried."""


@dataclass(frozen=True, slots=True)
class RankFigures(Record):
    """What one destination rank did."""

    rank: int
    path: Path
    backend: str
    received_bytes: int
    descriptor_count: int
    queue_s: float
    read_s: float
    verify_s: float
    compared_bytes: int = 0
    checksum_s: float = 0.0
    paths: tuple[PathFigures, ...] = ()
    """By source rank; ``path`` and ``backend`` are those that carried most."""
    verified_tokens: int = 0
    """Tokens in place: those that were there before, and those that were read and verified."""


@dataclass(frozen=True, slots=True)
class Attempt(Record):
    """A source that was given up, and what it had brought by then."""

    source_worker: str
    source_incarnation: int
    publication: str
    reason: Reason
    """Why it was given up."""
    message: str
    received_bytes: int
    """From it, over all ranks, also what was not verified."""
    verified_tokens: int
    """Tokens in place on every rank when it was given up."""
    total_s: float
    """From asking it until no byte of it could arrive any more."""


@dataclass(frozen=True, slots=True)
class TransferResult(Record):
    """A transfer as it stood at one revision; the result of a pull once ``state.is_terminal``."""

    name: str
    """``transfers/{transfer}``; empty while control has not named it."""
    request_id: str
    state: TransferState
    destination_settled: bool
    """Whether no byte can still arrive in the destination blocks. Until then they must stay out of use."""
    reason: Reason | None = None
    """Why it did not succeed."""
    retry_after_s: float | None = None
    """With RESOURCE_EXHAUSTED: when the same pull may find room, as the worker estimates it."""
    message: str = ""
    failed_rank: int | None = None
    path: str = Path.NONE.value
    """How the bytes travelled; more than one joined with ``+``."""
    backend: str = ""
    """What lay below the path, for example ``UCX``; more than one joined with ``+``."""
    received_bytes: int = 0
    descriptor_count: int = 0
    """Pieces read, after coalescing."""
    negotiate_s: float = 0.0
    queue_s: float = 0.0
    """The slowest rank's, like ``read_s`` and ``verify_s``."""
    read_s: float = 0.0
    verify_s: float = 0.0
    total_s: float = 0.0
    """From creation to the terminal state, measured by control."""
    token_count: int = 0
    source_worker: str = ""
    source_incarnation: int = 0
    publication: str = ""
    destination_worker: str = ""
    destination_incarnation: int = 0
    priority: int = 0
    create_time: datetime | None = None
    end_time: datetime | None = None
    revision: int = 0
    ranks: tuple[RankFigures, ...] = ()
    verified_tokens: int = 0
    """Tokens in place on every rank, also after a failure: a pull of the same tokens from elsewhere into the same
    blocks may begin there (``first_token=``)."""
    attempts: tuple[Attempt, ...] = ()
    """The sources that were given up, in order; ``source_worker`` and its neighbours name the one after them."""
    compared_bytes: int = 0
    """Of ``received_bytes``, those whose checksums were compared with the source's."""
    checksum_s: float = 0.0
    """How long that took, on the slowest rank."""

    @property
    def device_s(self) -> float:
        """How long the slowest rank's device copied, on its own clock; 0 if none did."""
        return max((sum(figures.device_s for figures in rank.paths) for rank in self.ranks), default=0.0)

    @property
    def choice(self) -> str:
        """Why the bytes took the path that they took, for people; more than one reason joined with ``; ``."""
        return "; ".join(sorted({figures.choice for rank in self.ranks for figures in rank.paths if figures.choice}))

    @property
    def succeeded(self) -> bool:
        """Whether the destination holds exactly what was published."""
        return self.state is TransferState.SUCCEEDED
