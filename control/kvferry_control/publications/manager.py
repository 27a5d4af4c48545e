"""This worker's publications: made, renewed, read and ended."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from kvferry.core.errors import (
    DataPlaneLost,
    InternalError,
    KvferryError,
    LeaseEnded,
    NotFound,
    RequestIdReused,
)
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.publication.v1 import publication_pb2 as pb
from kvferry.rpc.layouts import blocks_by_group
from kvferry.rpc.times import duration, seconds_of, timestamp
from kvferry_control.blocks import Blocks, count_blocks
from kvferry_control.config import LimitsSection
from kvferry_control.metrics import ControlMetrics
from kvferry_control.publications import machine
from kvferry_control.publications.machine import Life, State
from kvferry_control.publications.overload import too_many_live
from kvferry_control.ranks.link import COMMAND_TIMEOUT_S, RankLink
from kvferry_control.tasks import Spawn


@dataclass(slots=True)
class Publication:
    """One publication and all that is known of it. ``expires_at`` is monotonic, ``created_at`` since the epoch."""

    id: str
    request_id: str
    fingerprint: bytes
    blocks: Blocks
    token_count: int
    expected_readers: int
    expires_at: float
    ranks: frozenset[int]
    life: Life
    block_count: int = field(init=False)
    """Blocks on each rank, over all groups."""
    created_at: float = field(default_factory=lambda: time.time())  # noqa: PLW0108 - asked for anew each time
    leases: dict[int, neg.RankLease] = field(default_factory=dict)
    active_readers: set[str] = field(default_factory=set)
    finished_readers: set[str] = field(default_factory=set)
    """Those that succeeded, where their number is bounded: where so many are expected."""
    finished_count: int = 0
    leased: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once every rank has granted its lease or one has refused."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.block_count = count_blocks(self.blocks)

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"publications/{self.id}"

    def to_wire(self) -> pb.Publication:
        """Its wire form."""
        left = 0.0 if self.life.state.terminal else self.expires_at - time.monotonic()
        return pb.Publication(
            name=self.name,
            state=pb.PublicationState.Value(f"PUBLICATION_STATE_{self.life.state.name}"),
            token_count=self.token_count,
            block_count=self.block_count,
            expected_reader_count=self.expected_readers,
            finished_reader_count=self.finished_count,
            active_reader_count=len(self.active_readers),
            create_time=timestamp(self.created_at),
            time_left=duration(left),
        )


class Publications:
    """The table of publications, and the commands that pin and unpin their blocks on every rank."""

    def __init__(
        self,
        links: Sequence[RankLink],
        limits: LimitsSection,
        metrics: ControlMetrics,
        spawn: Spawn,
    ) -> None:
        self._links = links
        self._limits = limits
        self._metrics = metrics
        self._spawn = spawn
        self._all: dict[str, Publication] = {}
        self._kept: deque[str] = deque()
        self._by_request: dict[str, str] = {}
        self._live = 0
        self.on_ended: list[Callable[[Publication], None]] = []
        self._log = structlog.get_logger("kvferry.control.publications")

    @property
    def live_count(self) -> int:
        """Publications that have not ended."""
        return self._live

    def newest_first(self) -> list[Publication]:
        """All publications that are kept."""
        return list(reversed(self._all.values()))

    def get(self, publication_id: str) -> Publication:
        """One publication.

        Raises:
            NotFound: there is none, or it ended long ago.
        """
        publication = self._all.get(publication_id)
        if publication is None:
            raise NotFound.of_field("name", f"publications/{publication_id}", "no such publication")
        return publication

    async def publish(
        self,
        request_id: str,
        body: bytes,
        blocks: Blocks,
        token_count: int,
        ttl_s: float,
        expected_readers: int,
        ranks: frozenset[int],
    ) -> Publication:
        """Pin blocks on ``ranks``; ``body`` is the request's fingerprint.

        Raises:
            RequestIdReused: the id was used with another body.
            LeaseEnded: the id was used with this body, and that publication has ended.
            ResourceExhausted: as many publications are live as may be.
            KvferryError: a rank refused or is lost; nothing stays pinned.
        """
        known = self.known(request_id, body)
        if known is not None:
            return await self._settled(known)
        if self._live >= self._limits.live_publications:
            raise too_many_live(self._limits.live_publications, self._all.values(), self._metrics)
        publication = Publication(
            id=secrets.token_hex(8),
            request_id=request_id,
            fingerprint=body,
            blocks=blocks,
            token_count=token_count,
            expected_readers=expected_readers,
            expires_at=time.monotonic() + ttl_s,
            ranks=ranks,
            life=Life(waiting=ranks),
        )
        self._add(publication)
        for link in self._of(publication):
            # Not in the caller's task: a call that is given up must not leave ranks that were never heard.
            self._spawn(self._acquire(publication, link, ttl_s))
        return await self._settled(publication)

    async def renew(self, publication: Publication, ttl_s: float) -> None:
        """Make the leases last ``ttl_s`` from now on every rank.

        Raises:
            LeaseEnded: it has ended, on one rank at least.
        """
        if publication.life.state is not State.LIVE:
            raise LeaseEnded.of_field("name", publication.name, f"is {publication.life.state.name}")
        renew = dp.RenewLease(publication=publication.id, ttl=duration(ttl_s))
        expires_at = time.monotonic() + ttl_s
        async with asyncio.TaskGroup() as ranks:
            answers = [
                ranks.create_task(_outcome(link.command(dp.SessionRequest(renew_lease=renew))))
                for link in self._of(publication)
            ]
        for answer in answers:
            if (error := answer.result()) is not None:
                raise error
        publication.expires_at = expires_at

    async def release(self, publication: Publication) -> None:
        """End a publication. When this returns, every lease word is cleared.

        Raises:
            DataPlaneLost: a rank did not confirm; the publication stays ENDING until it does.
        """
        self._apply(publication, machine.Release())
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await publication.ended.wait()
        except TimeoutError as error:
            held = sorted(publication.life.held)
            raise DataPlaneLost(f"{publication.name}: ranks {held} have not confirmed that the lease ended") from error

    @property
    def has_readers(self) -> bool:
        """Whether any publication is being read, as far as its readers have told."""
        return any(publication.active_readers for publication in self._all.values())

    def begin_read(self, publication: Publication, transfer: str) -> None:
        """Note a reader.

        Raises:
            LeaseEnded: it is not live.
        """
        if publication.life.state is not State.LIVE:
            raise LeaseEnded.of_field("publication", publication.name, f"is {publication.life.state.name}")
        if transfer not in publication.finished_readers:
            publication.active_readers.add(transfer)

    def end_read(self, publication: Publication, transfer: str, succeeded: bool) -> None:
        """Note that a reader is done; the last expected one to succeed ends the publication."""
        publication.active_readers.discard(transfer)
        expected = publication.expected_readers
        if succeeded and transfer not in publication.finished_readers:
            publication.finished_count += 1
            if expected:
                publication.finished_readers.add(transfer)
        if expected and publication.finished_count >= expected:
            self._apply(publication, machine.Release())

    def lease_ended(self, rank: int, event: dp.LeaseEnded) -> None:
        """A rank's lease ended without having been asked to."""
        publication = self._all.get(event.publication)
        if publication is not None:
            self._apply(publication, machine.RankExpired(rank))

    def link_up(self, link: RankLink, leases: Sequence[dp.LeaseState]) -> None:
        """Compare with what a data plane holds: end what should not be there, learn what ended meanwhile."""
        held = {lease.publication for lease in leases}
        for publication in list(self._all.values()):
            if link.rank in publication.life.held:
                if publication.id not in held:
                    self._apply(publication, machine.RankExpired(link.rank))
                elif publication.life.state is State.ENDING:
                    self._spawn(self._clear(publication, link))
        for publication_id in held:
            known = self._all.get(publication_id)
            if known is None or known.life.state.terminal:
                link.post(dp.SessionRequest(release_lease=dp.ReleaseLease(publication=publication_id)))

    def recover(self, leases: Mapping[int, Sequence[dp.LeaseState]]) -> int:
        """After a restart of control: take over what every rank still holds. Returns how many publications live on."""
        by_id: dict[str, dict[int, dp.LeaseState]] = {}
        for rank, held in leases.items():
            for state in held:
                by_id.setdefault(state.publication, {})[rank] = state
        recovered = 0
        for publication_id, states in by_id.items():
            if publication_id not in self._all and self._is_whole(states):
                self._recover_one(publication_id, states)
                recovered += 1
        return recovered

    def end_all(self, why: str, lost_rank: int | None) -> None:
        """The worker begins a new life: ``lost_rank`` holds nothing any more, the others still have to clear theirs."""
        for publication in list(self._all.values()):
            lost = lost_rank if lost_rank in publication.ranks else None
            self._apply(publication, machine.Release() if lost is None else machine.RankLost(lost, DataPlaneLost(why)))

    def _of(self, publication: Publication) -> list[RankLink]:
        """The links to the ranks that hold it."""
        return [link for link in self._links if link.rank in publication.ranks]

    @staticmethod
    def _is_whole(states: Mapping[int, dp.LeaseState]) -> bool:
        """Whether every rank that was given the lease still holds it."""
        return len(states) == pb.LeaseAttributes.FromString(next(iter(states.values())).attributes).rank_count

    def _recover_one(self, publication_id: str, states: Mapping[int, dp.LeaseState]) -> None:
        first = next(iter(states.values()))
        attributes = pb.LeaseAttributes.FromString(first.attributes)
        left = min(seconds_of(state.time_left) for state in states.values())
        publication = Publication(
            id=publication_id,
            request_id=attributes.request_id,
            fingerprint=attributes.fingerprint,
            blocks=blocks_by_group(first.blocks),
            token_count=attributes.token_count,
            expected_readers=attributes.expected_reader_count,
            expires_at=time.monotonic() + left,
            ranks=frozenset(states),
            life=Life(waiting=frozenset(), held=frozenset(states), state=State.LIVE),
            created_at=attributes.create_time.ToNanoseconds() / 1e9,
            leases={rank: state.lease for rank, state in states.items()},
        )
        publication.leased.set()
        self._add(publication)

    def known(self, request_id: str, body: bytes) -> Publication | None:
        """The publication of an earlier request. Raises RequestIdReused for another body."""
        publication = self._all.get(self._by_request.get(request_id, ""))
        if publication is not None and publication.fingerprint != body:
            raise RequestIdReused.of_field("request_id", request_id, "was used with another body")
        return publication

    async def _settled(self, publication: Publication) -> Publication:
        """The publication once it is live; its error if it never became so."""
        await publication.leased.wait()
        if publication.life.state is State.LIVE:
            return publication
        if publication.life.outcome is State.FAILED:
            await self.release(publication)
            raise publication.life.error or InternalError("a publication failed without a reason")
        raise LeaseEnded.of_field("request_id", publication.request_id, f"its {publication.name} has ended")

    def _add(self, publication: Publication) -> None:
        self._all[publication.id] = publication
        self._by_request[publication.request_id] = publication.id
        self._live += 1
        self._metrics.live_publications.set(self._live)

    async def _acquire(self, publication: Publication, link: RankLink, ttl_s: float) -> None:
        attributes = pb.LeaseAttributes(
            request_id=publication.request_id,
            fingerprint=publication.fingerprint,
            token_count=publication.token_count,
            expected_reader_count=publication.expected_readers,
            create_time=timestamp(publication.created_at),
            rank_count=len(publication.ranks),
        )
        command = dp.AcquireLease(
            publication=publication.id,
            blocks=publication.blocks.values(),
            ttl=duration(ttl_s),
            attributes=attributes.SerializeToString(),
            token_count=publication.token_count,
        )
        try:
            answer = await link.command(dp.SessionRequest(acquire_lease=command))
        except KvferryError as error:
            self._apply(publication, machine.RankRefused(link.rank, error))
            return
        publication.leases[link.rank] = answer.lease_granted.lease
        self._apply(publication, machine.RankGranted(link.rank))

    def _apply(self, publication: Publication, event: machine.Event) -> None:
        before, publication.life = publication.life, machine.advance(publication.life, event)
        state = publication.life.state
        if state is not State.LEASING:
            publication.leased.set()
        if state is State.ENDING:
            newly_held = (
                publication.life.held if before.state is not State.ENDING else (publication.life.held - before.held)
            )
            for link in self._of(publication):
                if link.rank in newly_held and link.up:
                    self._spawn(self._clear(publication, link))
        if state.terminal and not before.state.terminal:
            self._end(publication)

    async def _clear(self, publication: Publication, link: RankLink) -> None:
        try:
            await link.command(dp.SessionRequest(release_lease=dp.ReleaseLease(publication=publication.id)))
        except KvferryError as error:
            # The rank still counts as held: the next session with it, or its restart, settles it.
            self._log.warning("lease not cleared yet", publication=publication.name, rank=link.rank, error=str(error))
            return
        self._apply(publication, machine.RankCleared(link.rank))

    def _end(self, publication: Publication) -> None:
        self._live -= 1
        self._metrics.live_publications.set(self._live)
        self._metrics.publications.labels(publication.life.state.name.lower()).inc()
        publication.active_readers.clear()
        publication.ended.set()
        self._log.info(
            "publication ended",
            publication=publication.name,
            state=publication.life.state.name,
            tokens=publication.token_count,
            blocks=publication.block_count,
            readers=publication.finished_count,
            held_s=round(time.time() - publication.created_at, 6),
        )
        for tell in self.on_ended:
            tell(publication)
        # What is kept of ended publications must stay small, however many blocks they had.
        publication.blocks = {}
        self._kept.append(publication.id)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        while len(self._kept) > self._limits.kept_publications:
            oldest = self._all.pop(self._kept.popleft())
            if self._by_request.get(oldest.request_id) == oldest.id:
                del self._by_request[oldest.request_id]


async def _outcome(command: Coroutine[None, None, object]) -> KvferryError | None:
    """The error a command ended with, so that a task group waits for all its siblings."""
    try:
        await command
    except KvferryError as error:
        return error
    return None
