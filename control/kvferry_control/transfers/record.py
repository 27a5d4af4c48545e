"""One transfer and all that is known of it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from google.protobuf.duration_pb2 import Duration

from kvferry.core.layouts import WorkerLayout
from kvferry.rpc.times import duration, seconds_of, timestamp
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry_control.blocks import Blocks
from kvferry_control.transfers.attempts import Attempt, Candidate, failure_to_wire
from kvferry_control.transfers.machine import Life


@dataclass(slots=True)
class TransferRecord:
    """A transfer. ``deadline`` and ``begun`` are monotonic, ``created_at`` and ``ended_at`` since the epoch."""

    id: str
    request_id: str
    fingerprint: bytes
    handle: bytes
    source_worker: str
    source_incarnation: int
    publication: str
    destination_worker: str
    destination_incarnation: int
    blocks: Blocks
    priority: int
    first_token: int
    ranks: frozenset[int]
    """Ranks of this worker that read."""
    deadline: float
    """When it must be over."""
    service_s: float = 0.0
    """With a queue deadline: how long each of its reads may take once it is served."""
    queue_deadline: float | None = None
    """When it must be served; None: whenever, before its deadline."""
    compare_every: int = 0
    """Checksums of one block in so many are compared; 0: none."""
    begun: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108 - asked for anew each time
    created_at: float = field(default_factory=lambda: time.time())  # noqa: PLW0108 - asked for anew each time
    ended_at: float = 0.0
    life: Life = field(default_factory=Life)
    revision: int = 0
    token_count: int = 0
    negotiate_s: float = 0.0
    total_s: float = 0.0
    negotiated: bool = False
    """The source has answered."""
    layout: WorkerLayout | None = None
    """This worker's, when the transfer was made."""
    sources: list[Candidate] = field(default_factory=list)
    """Those to go on with."""
    in_spans: bool = False
    """Whether what has arrived is verified a span at a time: only who may go on elsewhere pays for knowing it."""
    attempts: list[Attempt] = field(default_factory=list)
    """The sources that were given up."""
    asked_at: float = 0.0
    """When the source was asked, monotonic."""
    share_timer: asyncio.TimerHandle | None = None
    """Ends the source's share of the time."""
    figures: dict[int, pb.RankFigures] = field(default_factory=dict)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    negotiation: "asyncio.Task[None] | None" = None
    watchers: "list[Callable[[TransferRecord], None]]" = field(default_factory=list)
    """Called once it is terminal."""

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"transfers/{self.id}"

    @property
    def seconds_left(self) -> float:
        """Until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    @property
    def received_bytes(self) -> int:
        """Bytes that arrived, over all ranks."""
        return sum(figures.received_bytes for figures in self.figures.values())

    @property
    def source(self) -> Candidate:
        """The source that is asked or read, or was last."""
        return Candidate(self.source_worker, self.source_incarnation, self.publication, self.handle)

    @property
    def verified_tokens(self) -> int:
        """Tokens in place on every rank."""
        return min(map(self.first_token_of, self.ranks), default=self.first_token)

    @property
    def is_served(self) -> bool:
        """Whether a byte has arrived, as far as is known."""
        return any(figures.received_bytes for figures in self.figures.values())

    def first_token_of(self, rank: int) -> int:
        """The first token that a rank still needs."""
        figures = self.figures.get(rank)
        return self.first_token if figures is None else max(self.first_token, figures.verified_token_count)

    def name_sources_given_up(self) -> None:
        """Have the failure speak of the sources before the last as well."""
        failure = self.life.failure
        if failure is not None and self.attempts:
            before = "; ".join(map(str, self.attempts))
            where = f"workers/{self.source_worker} publications/{self.publication}"
            message = f"{where}: {failure.message}; given up before: {before}"
            self.life = replace(self.life, failure=replace(failure, message=message))

    def give_up_source(self, now: float) -> Attempt:
        """Note what the source has brought, and have the next one in its place."""
        attempt = Attempt(
            source=self.source,
            failure=self.life.given_up[len(self.attempts)],
            received_bytes=self.received_bytes - sum(attempt.received_bytes for attempt in self.attempts),
            verified_tokens=self.verified_tokens,
            total_s=now - self.asked_at,
        )
        self.attempts.append(attempt)
        following = self.sources.pop(0)
        self.source_worker, self.source_incarnation = following.worker, following.incarnation
        self.publication, self.handle = following.publication, following.handle
        return attempt

    @property
    def descriptor_count(self) -> int:
        """Pieces read, over all ranks."""
        return sum(figures.descriptor_count for figures in self.figures.values())

    @property
    def paths(self) -> list[str]:
        """The paths taken, without repetitions: for example ``["nixl/UCX"]``."""
        return sorted(
            {
                f"{pb.Path.Name(figures.path).removeprefix('PATH_').lower()}/{figures.backend}"
                for figures in self.figures.values()
                if figures.path != pb.PATH_UNSPECIFIED
            }
        )

    def slowest(self, stage: str) -> float:
        """Seconds of the slowest rank in ``queue_time``, ``read_time``, ``verify_time`` or ``checksum_time``."""
        times: list[Duration] = [getattr(figures, stage) for figures in self.figures.values()]
        return max(map(seconds_of, times), default=0.0)

    def to_wire(self) -> pb.Transfer:
        """Its wire form."""
        life = self.life
        return pb.Transfer(
            name=self.name,
            request_id=self.request_id,
            state=pb.TransferState.Value(f"TRANSFER_STATE_{life.state.name}"),
            revision=self.revision,
            source_worker=f"workers/{self.source_worker}",
            source_incarnation=self.source_incarnation,
            publication=f"publications/{self.publication}",
            destination_worker=f"workers/{self.destination_worker}",
            destination_incarnation=self.destination_incarnation,
            token_count=self.token_count,
            priority=self.priority,
            create_time=timestamp(self.created_at),
            end_time=timestamp(self.ended_at) if life.state.terminal else None,
            failure=failure_to_wire(life.failure) if life.failure is not None else None,
            received_bytes=self.received_bytes,
            descriptor_count=self.descriptor_count,
            negotiate_time=duration(self.negotiate_s),
            queue_time=duration(self.slowest("queue_time")),
            read_time=duration(self.slowest("read_time")),
            verify_time=duration(self.slowest("verify_time")),
            total_time=duration(self.total_s),
            ranks=[self.figures[rank] for rank in sorted(self.figures)],
            destination_settled=life.settled and life.state.terminal,
            first_token=self.first_token,
            attempts=[attempt.to_wire() for attempt in self.attempts],
            verified_token_count=self.verified_tokens,
            compared_bytes=sum(figures.compared_bytes for figures in self.figures.values()),
            checksum_time=duration(self.slowest("checksum_time")),
        )
