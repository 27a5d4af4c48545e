"""Asks agents for what comes next: lease words at once, batches of blocks in turns.

A peer whose batches made a rollover necessary is *suspect*: a lease word is read from it into scratch memory first, so
that a peer that stays stuck costs one rollover and not one for each of its reads.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

from kvferry.core.errors import KvferryError, PeerError, TransportFailed
from kvferry.core.reasons import Reason
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.activation import ActiveReads
from kvferry_dataplane.reads.active import ActiveRead
from kvferry_dataplane.reads.generation import Flight, Generation, Purpose
from kvferry_dataplane.reads.generations import Generations
from kvferry_dataplane.reads.request import ReadBounds, ReadPart
from kvferry_dataplane.reads.turns import Claim, Turns
from kvferry_dataplane.shared_bound import SharedBound

SHARE_OF_FREE = 1.0
"""A source may have as many bytes in flight as are free: one alone has half of the bound."""


@dataclass(frozen=True, slots=True)
class Reactions:
    """What follows from asking. Each is given the time last."""

    served: Callable[[ActiveRead, float], None]
    """The first that was asked for of a read."""
    failed: Callable[[Generation, Flight, KvferryError, float], None]
    """An agent refused."""
    ended: Callable[[str, KvferryError, float], None]
    """A transfer cannot go on."""


class Posting:
    """What reads still have to ask for. Every method takes the time, in seconds, on a clock that only grows."""

    def __init__(
        self, generations: Generations, bounds: ReadBounds, clock: Callable[[], float], reactions: Reactions
    ) -> None:
        self._generations = generations
        self._bounds = bounds
        self._clock = clock
        self._react = reactions
        self._rounds = count(1)
        self._turns = Turns(bounds.patience_seconds)
        self.suspects: set[str] = set()
        """Names of peers."""
        self.lost: set[str] = set()
        """Names of peers whose connection broke since they were gone, and that have not been read from again."""
        self.posted_count = 0

    def post(self, reads: ActiveReads, now: float) -> None:
        """Ask for as much as the bounds of a step allow."""
        for read in reads:
            if read.has_arrived and not read.ending:
                self._post_words(read, now)
        claims = _claims(reads)
        self._turns.begin(claims, reads.priorities(), now)
        if not claims:
            return
        in_flight, moving = self._in_flight()
        budget = self._bounds.step_bytes_max
        while budget > 0 and (claim := self._turns.next(claims, moving, now)) is not None:
            waiting = claims[claim]
            read = waiting.pop(0)
            posted_bytes = self._post_for(read, in_flight, max(moving, default=claim[0]), now)
            if posted_bytes:
                budget -= posted_bytes
                self._turns.served(claim, posted_bytes, now)
                moving.add(claim[0])
                if read.has_claim:
                    waiting.append(read)
            if not waiting:
                del claims[claim]

    def arrived(self, read: ActiveRead, now: float) -> None:
        """A batch of a read has arrived."""
        self._turns.moved(read.request.priority, now)

    def next_change(self, now: float) -> float | None:
        """When something may be asked for only because time has passed."""
        return self._turns.next_change(now)

    def _in_flight(self) -> tuple[SharedBound, set[int]]:
        """What is in flight by source, and of which priorities something is."""
        bound = SharedBound(self._bounds.bytes_in_flight_max, SHARE_OF_FREE)
        moving = set()
        for generation in self._generations.all():
            for flight in generation.flights:
                if flight.read is None or flight.batch is None:
                    continue
                if not flight.read.parts[flight.part].route.is_device_copy:
                    bound.take(flight.read.request.source, flight.in_flight_bytes)
                if not flight.read.ending:
                    moving.add(flight.read.request.priority)
        return bound, moving

    def _post_for(self, read: ActiveRead, in_flight: SharedBound, urgency: int, now: float) -> int:
        """Ask for a read's next batch, unless a bound forbids it; returns its bytes."""
        number = read.next_part()
        if number is None:
            return 0
        source, part = read.request.source, read.parts[number]
        batch_bytes = part.todo[0].total_bytes
        counts = not part.route.is_device_copy
        if counts and in_flight.held(source) and not in_flight.has_room(source, batch_bytes):
            return 0
        try:
            if not self._post_batch(read, number, max(urgency, read.request.priority), now):
                return 0
        except KvferryError as error:
            self._react.ended(read.request.transfer, error, now)
            return 0
        if counts:
            in_flight.take(source, batch_bytes)
        # Also an empty batch is a turn.
        return max(batch_bytes, 1)

    def _post_batch(self, read: ActiveRead, number: int, urgency: int, now: float) -> bool:
        part = read.parts[number]
        source, peer = part.source, part.source.peer
        generation = self._generations.current(part.route.path)
        if not generation.lasting and not self._may_ask(generation, source, part.todo[0].total_bytes, now):
            return False
        if not self._connect(generation, peer):
            return False
        batch = read.take_batch(number)
        read.turn = next(self._rounds)
        part.first_posted_at = self._clock() if part.first_posted_at is None else part.first_posted_at
        read.first_posted_at = part.first_posted_at if read.first_posted_at is None else read.first_posted_at
        flight = Flight(Purpose.BLOCKS, peer, 0, read, number, batch)
        self._note(generation, flight, read, now)
        try:
            # Copiers have priorities of their own: what has waited for long enough is not to wait there again.
            flight.handle = generation.agent.read_blocks(source, batch, urgency)
        except KvferryError as error:
            self._react.failed(generation, flight, error, now)
        return True

    def _may_ask(self, generation: Generation, source: ReadPart, batch_bytes: int, now: float) -> bool:
        """Whether NIXL may be asked for a batch of a peer: the peer is no suspect, and its window has room."""
        if source.peer.name in self.suspects:
            self._probe(generation, source, now)
            return False
        in_flight = generation.bytes_in_flight(source.peer.name)
        return not in_flight or in_flight + batch_bytes <= self._bounds.bytes_in_flight_per_peer

    def _post_words(self, read: ActiveRead, now: float) -> None:
        try:
            for part in range(len(read.parts)):
                self._post_word(read, part, now)
        except KvferryError as error:
            self._react.ended(read.request.transfer, error, now)

    def _post_word(self, read: ActiveRead, part: int, now: float) -> None:
        source = read.parts[part].source
        generation = self._generations.current(read.parts[part].route.path)
        if read.ending or part in read.words_verified or part in read.words_in_flight or not generation.free_cells:
            return
        if not self._connect(generation, source.peer):
            return
        flight = Flight(Purpose.WORD, source.peer, 0, read, part, cell=generation.free_cells.popleft())
        read.words_in_flight.add(part)
        self._note(generation, flight, read, now)
        try:
            flight.handle = generation.agent.read_word(source, flight.cell)
        except KvferryError as error:
            self._react.failed(generation, flight, error, now)

    def _probe(self, generation: Generation, source: ReadPart, now: float) -> None:
        peer = source.peer
        if generation.has_probe(peer.name) or not generation.free_cells or not self._connect(generation, peer):
            return
        flight = Flight(Purpose.PROBE, peer, 0, None, cell=generation.free_cells.popleft())
        generation.flights.append(flight)
        try:
            flight.handle = generation.agent.read_word(source, flight.cell)
        except KvferryError as error:
            self._react.failed(generation, flight, error, now)

    def _connect(self, generation: Generation, peer: Peer) -> bool:
        """Make sure that an agent knows a peer, as :meth:`Generation.connect`; one that was lost, and is refused by the
        backend since, is still lost."""
        try:
            return generation.connect(peer)
        except TransportFailed as refusal:
            if peer.name not in self.lost:
                raise
            raise PeerError(f"the peer was lost, and since: {refusal.message}", reason=Reason.PEER_LOST) from refusal

    def _note(self, generation: Generation, flight: Flight, read: ActiveRead, now: float) -> None:
        generation.flights.append(flight)
        self.posted_count += 1
        if not read.is_served:
            read.is_served = True
            self._react.served(read, now)


def _claims(reads: Iterable[ActiveRead]) -> dict[Claim, list[ActiveRead]]:
    """Reads that have blocks to ask for, by claim; who has waited longest for a turn comes first."""
    claims: dict[Claim, list[ActiveRead]] = {}
    for read in sorted(reads, key=lambda read: read.turn):
        if read.has_claim:
            claims.setdefault((read.request.priority, read.request.source), []).append(read)
    return claims
