"""One transfer and all that is known of it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from kvferry.core.layouts import WorkerLayout
from kvferry.rpc.times import put_duration, put_time
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry_control.blocks import Blocks
from kvferry_control.transfers.attempts import Attempt, Candidate, failure_to_wire
from kvferry_control.transfers.machine import Life, State
from kvferry_control.transfers.totals import Totals, totals_of

_STATES = {state: pb.TransferState.Value(f"TRANSFER_STATE_{state.name}") for state in State}
_PATHS = {value: name.removeprefix("PATH_").lower() for name, value in pb.Path.items()}


class Cancellable(Protocol):
    """A question, a task or a timer."""

    def cancel(self) -> object:
        """Have nothing come of it."""


@dataclass(slots=True)
class TransferRecord:
    """A transfer. ``deadline`` and ``begun`` are monotonic, ``created_at`` and ``ended_at`` since the epoch."""

    id: str
    request_id: str
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
    fingerprint: bytes = b""
    """Of the request that made it."""
    engine_life: str = ""
    """Which process of the engine asked for it, in hexadecimal; nothing if that was not said."""
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
    is_early: bool = False
    """Its reads were sent by what the source had told unasked, and it has not answered."""
    held_failures: list[tuple[int, pb.Failure]] = field(default_factory=list)
    """Of such reads, by rank: the source may know better why, and is about to answer."""
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
    negotiation: Cancellable | None = None
    """What was asked of the source."""
    watchers: "list[Callable[[TransferRecord], None]]" = field(default_factory=list)
    """Called once it is terminal."""
    _totals: Totals | None = None

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"transfers/{self.id}"

    @property
    def seconds_left(self) -> float:
        """Until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    @property
    def totals(self) -> Totals:
        """What all ranks have done together, added up once for each time that they say something."""
        if self._totals is None:
            self._totals = totals_of(self.figures.values())
        return self._totals

    def take_figures(self, rank: int, figures: pb.RankFigures) -> None:
        """Note what a rank has done; the message is kept, and not to be changed any more."""
        self.figures[rank] = figures
        self._totals = None

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
        return self.totals.received_bytes > 0

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
            received_bytes=self.totals.received_bytes - sum(attempt.received_bytes for attempt in self.attempts),
            verified_tokens=self.verified_tokens,
            total_s=now - self.asked_at,
        )
        self.attempts.append(attempt)
        following = self.sources.pop(0)
        self.source_worker, self.source_incarnation = following.worker, following.incarnation
        self.publication, self.handle = following.publication, following.handle
        return attempt

    @property
    def paths(self) -> list[str]:
        """The paths taken, without repetitions: for example ``["nixl/UCX"]``."""
        return sorted(
            {
                f"{_PATHS[figures.path]}/{figures.backend}"
                for figures in self.figures.values()
                if figures.path != pb.PATH_UNSPECIFIED
            }
        )

    def to_wire(self) -> pb.Transfer:
        """Its wire form."""
        wire = pb.Transfer()
        self.write_to(wire)
        return wire

    def write_to(self, wire: pb.Transfer) -> None:
        """Write its wire form into a message that has nothing in it yet: to put it there afterwards would copy it."""
        life, totals = self.life, self.totals
        wire.name = self.name
        wire.request_id = self.request_id
        wire.state = _STATES[life.state]
        wire.revision = self.revision
        wire.source_worker = f"workers/{self.source_worker}"
        wire.source_incarnation = self.source_incarnation
        wire.publication = f"publications/{self.publication}"
        wire.destination_worker = f"workers/{self.destination_worker}"
        wire.destination_incarnation = self.destination_incarnation
        wire.token_count = self.token_count
        wire.priority = self.priority
        if life.failure is not None:
            wire.failure.CopyFrom(failure_to_wire(life.failure))
        wire.received_bytes = totals.received_bytes
        wire.descriptor_count = totals.descriptor_count
        wire.ranks.extend([self.figures[rank] for rank in sorted(self.figures)])
        wire.destination_settled = life.settled and life.state.terminal
        wire.first_token = self.first_token
        wire.attempts.extend([attempt.to_wire() for attempt in self.attempts])
        wire.verified_token_count = self.verified_tokens
        wire.compared_bytes = totals.compared_bytes
        self._write_times(wire, totals)

    def _write_times(self, wire: pb.Transfer, totals: Totals) -> None:
        put_time(wire.create_time, self.created_at)
        if self.life.state.terminal:
            put_time(wire.end_time, self.ended_at)
        put_duration(wire.negotiate_time, self.negotiate_s)
        put_duration(wire.queue_time, totals.queue_s)
        put_duration(wire.read_time, totals.read_s)
        put_duration(wire.verify_time, totals.verify_s)
        put_duration(wire.checksum_time, totals.checksum_s)
        put_duration(wire.total_time, self.total_s)
