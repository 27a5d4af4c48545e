"""Executes reads: one thread calls :meth:`ReadExecutor.step` over and over. Knows neither threads nor clocks.

A read goes through: queue → batches (bounded in bytes and descriptors) → lease words → outcome. A read that ends
early posts nothing more and waits ``settle_seconds`` for its batches in flight. If one is still not confirmed, nothing
but the end of the agent can stop it from writing: a *rollover*. The agent takes no new work, goes on for other reads'
batches for ``retire_seconds``, and is destroyed; only then is the read's outcome told.

Which reads may be active is told by ``activation``, whose batch is next by ``turns``; ``posting`` asks for it.

All this is NIXL's. The agents of the other paths end a batch when they are asked to; they are never given up.
"""

import time
from collections.abc import Callable, Iterator, Mapping

from kvferry.core.errors import Cancelled, DeadlineExceeded, KvferryError, NotReady, PeerError, QueueTimeout
from kvferry.core.reasons import Reason
from kvferry_dataplane.paths import Path
from kvferry_dataplane.peers import Peer, peer_lost
from kvferry_dataplane.reads.activation import ActiveReads
from kvferry_dataplane.reads.active import ActivePart, ActiveRead
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.at_once import AtOnce, Begun, fenced
from kvferry_dataplane.reads.deadlines import Deadlines
from kvferry_dataplane.reads.generation import Flight, Generation, Purpose
from kvferry_dataplane.reads.generations import Generations
from kvferry_dataplane.reads.next_step import NextStep
from kvferry_dataplane.reads.posting import Posting, Reactions
from kvferry_dataplane.reads.queue import ReadQueue
from kvferry_dataplane.reads.request import ReadBounds, ReadOutcome, ReadRequest
from kvferry_dataplane.reads.routing import Routing


class ReadExecutor:
    """The reads of one pool. Every method takes the time, in seconds, on a clock that only grows."""

    def __init__(
        self,
        make_agent: Callable[[int], ReadAgent],
        on_finished: Callable[[ReadOutcome], None],
        routing: Routing,
        lasting: Mapping[Path, ReadAgent],
        bounds: ReadBounds | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        unsafe_skip_rollover: bool = False,
    ) -> None:
        """``make_agent`` makes NIXL's agents, given the generation's number, from 1; ``lasting`` has those of the other
        paths that ``routing`` gives. ``clock`` is read for figures only. ``unsafe_skip_rollover`` is for tests that
        look for late bytes: reads that do not end are said to have ended.
        """
        self._skips_rollover = unsafe_skip_rollover
        self._clock = clock
        self._bounds = bounds or ReadBounds()
        self._on_finished = on_finished
        self._routing = routing
        self._generations = Generations(make_agent, lasting)
        self._queue = ReadQueue()
        self._active = ActiveReads(self._bounds)
        self._deadlines = Deadlines()
        self._posting = Posting(
            self._generations, self._bounds, clock, Reactions(self._served, self._failed, self._end)
        )
        self._at_once = AtOnce(self._generations, routing, self._bounds, clock)
        self._next = NextStep(
            self._bounds, self._generations, self._queue, self._active, self._deadlines, self._posting
        )
        self._leaving: dict[str, Peer] = {}
        self._moved_count = 0

    @property
    def rollovers(self) -> int:
        """Agents that had to be given up."""
        return self._generations.rollovers

    @property
    def progress_count(self) -> int:
        """Grows whenever something was posted or confirmed."""
        return self._moved_count + self._posting.posted_count

    @property
    def queued_count(self) -> int:
        """Reads that wait for their turn."""
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        """Bytes of the reads that wait for their turn."""
        return self._queue.total_bytes

    def prepare(self) -> None:
        """Make the first agent, so that no read has to wait for it.

        Raises:
            TransportFailed: it cannot be made.
        """
        self._generations.current()

    def connect(self, peer: Peer) -> None:
        """Learn a peer before its first read.

        Raises:
            TransportFailed: the backend refuses its metadata. Its reads will say so again.
        """
        self._leaving.pop(peer.name, None)
        if self._routing.connect(peer):
            self._generations.current().connect(peer)

    def disconnect(self, peer: Peer, now: float) -> None:
        """Forget a peer: its reads end as PEER_LOST."""
        lost = PeerError(f"peer {peer.name} was disconnected", reason=Reason.PEER_LOST)
        self._end_reads_of(peer.name, lost, now)
        self._posting.suspects.discard(peer.name)
        self._posting.lost.discard(peer.name)
        self._leaving[peer.name] = peer
        self._routing.disconnect(peer)

    def submit(self, request: ReadRequest) -> None:
        """Queue a read. Its transfer id must be unused."""
        self._queue.push(request)
        self._bound(request)

    def _bound(self, request: ReadRequest) -> None:
        at = request.deadline if request.queue_deadline is None else request.queue_deadline
        self._deadlines.set(request.transfer, at)

    def read_at_once(self, request: ReadRequest, now: float) -> bool:
        """Read mapped memory on the spot, as :meth:`AtOnce.read`, where nothing else is queued or active; returns
        whether it was begun. What has not ended in time goes on by :meth:`step`, as any read.
        """
        begun = self._at_once.read(request) if self.is_free else None
        if begun is None:
            return False
        for part in begun.read.parts:
            self._carried(part, begun.read.last_arrived_at)
        if begun.is_over:
            self._on_finished(begun.read.outcome(self._clock()))
        else:
            self._take_over(begun, now)
        return True

    def _take_over(self, begun: Begun, now: float) -> None:
        """Go on with a read that was begun at once."""
        self._bound(begun.read.request)
        self._active.add(begun.read)
        begun.read.is_served = True
        self._served(begun.read, now)
        mapped = self._generations.current(Path.LOCAL)
        mapped.flights += begun.flights
        if begun.refused is not None:
            flight, error = begun.refused
            mapped.flights.append(flight)
            self._failed(mapped, flight, error, now)

    @property
    def is_free(self) -> bool:
        """Whether nothing is queued or active."""
        return not (self._active or self._queue)

    def cancel(self, transfer: str, now: float) -> None:
        """End a read early; nothing happens if it is over."""
        self._end(transfer, Cancelled("the read was cancelled"), now)

    def close(self, now: float) -> None:
        """End every read and destroy every agent."""
        for request in list(self._requests()):
            self._end(request.transfer, NotReady("the data plane is shutting down"), now)
        for generation in self._generations.all():
            self._destroy(generation)

    # The loop

    def step(self, now: float) -> float | None:
        """Do what can be done at once.

        Returns seconds until the next call is needed: 0 while something has to be polled or moves, None if only a
        command or what wakes the thread can bring new work.
        """
        moved_before = self.progress_count
        self._end_overdue(now)
        self._end_lost(now)
        self._activate(now)
        self._posting.post(self._active, now)
        confirmed_before = self._moved_count
        self._poll(now)
        if self._moved_count != confirmed_before and any(read.awaits_words for read in self._active):
            # A copier's source has its lease word at once: whoever waits for the read need not wait for another step.
            self._posting.post(self._active, now)
            self._poll(now)
        self._roll_over(now)
        wanted = {peer for read in self._active for peer in read.request.lane}
        if not self._skips_rollover:
            self._generations.retire_unwanted(wanted, now, self._bounds.orphan_seconds)
        for generation in self._generations.due(now):
            self._destroy(generation)
        self._generations.let_go(self._leaving)
        return self._next.wait(now, moved=self.progress_count != moved_before)

    def _end_overdue(self, now: float) -> None:
        for transfer in self._deadlines.passed(now):
            active = self._active.get(transfer)
            stage = "queued" if active is None else active.stage
            waits = self._queue.get(transfer) if active is None else active.request
            if waits is not None and waits.queue_deadline is not None and (active is None or not active.is_served):
                waited = now - waits.accepted_at
                self._end(transfer, QueueTimeout(f"not served within {waited:.3g} s, while {stage}"), now)
            else:
                self._end(transfer, DeadlineExceeded(f"the read's deadline passed while {stage}"), now)

    def _served(self, read: ActiveRead, now: float) -> None:
        request = read.request
        if request.queue_deadline is not None:
            self._deadlines.set(request.transfer, min(now + request.service_seconds, request.deadline))

    def _end_lost(self, now: float) -> None:
        for peer in self._routing.take_lost():
            self._end_reads_of(peer.name, peer_lost(peer), now)

    def _activate(self, now: float) -> None:
        for request in self._queue.eldest():
            is_elder = request.accepted_at <= now - self._bounds.patience_seconds
            if is_elder and self._active.has_room_for_elder(request) and not self._active.has_room(request):
                self._try_to_start(request, now, as_elder=True)
        for request in self._queue.heads():
            if self._active.has_room(request):
                self._try_to_start(request, now, as_elder=False)

    def _try_to_start(self, request: ReadRequest, now: float, *, as_elder: bool) -> None:
        """Begin a read, unless the way to one of its sources is still being found out."""
        try:
            routes = [self._routing.route(part) for part in request.parts]
        except KvferryError as error:
            self._end(request.transfer, error, now)
            return
        known = [route for route in routes if route is not None]
        if len(known) < len(routes):
            return
        self._queue.remove(request.transfer)
        read = ActiveRead(request)
        self._active.add(read, as_elder=as_elder)
        self._moved_count += 1
        try:
            read.begin(known, self._bounds)
        except KvferryError as error:
            self._end(request.transfer, error, now)

    # Confirmations

    def _poll(self, now: float) -> None:
        for generation in self._generations.all():
            for flight in list(generation.flights):
                try:
                    done = generation.agent.is_done(flight.handle)
                except KvferryError as error:
                    self._failed(generation, flight, error, now)
                else:
                    if done:
                        self._arrived(generation, flight, now)

    def _arrived(self, generation: Generation, flight: Flight, now: float) -> None:
        generation.flights.remove(flight)
        self._moved_count += 1
        self._posting.lost.discard(flight.peer.name)
        if flight.purpose is Purpose.PROBE:
            self._posting.suspects.discard(flight.peer.name)
        word = generation.agent.word(flight.cell) if flight.purpose is Purpose.WORD else 0
        if flight.purpose is not Purpose.BLOCKS:
            generation.free_cells.append(flight.cell)
        read = flight.read
        if read is None:
            return
        if flight.batch is not None:
            self._posting.arrived(read, now)
            self._batch_arrived(read, flight, flight.batch.total_bytes, generation.agent.device_seconds(flight.handle))
            self._finish_if_settled(read)
        else:
            self._verify(read, flight.part, word, now)

    def _batch_arrived(self, read: ActiveRead, flight: Flight, batch_bytes: int, device_seconds: float) -> None:
        part = read.batch_ended(flight.part)
        part.device_seconds += device_seconds
        if flight.stopped:
            return
        part.received_bytes += batch_bytes
        read.last_arrived_at = self._clock()
        if not read.ending:
            self._carried(part, read.last_arrived_at)

    def _carried(self, part: ActivePart, arrived_at: float | None) -> None:
        seconds = None if arrived_at is None else part.seconds(arrived_at)
        if seconds is not None:
            self._posting.lost.discard(part.source.peer.name)
            self._routing.carried(part.source, part.route, part.descriptor_count, seconds)

    def _verify(self, read: ActiveRead, part: int, word: int, now: float) -> None:
        read.words_in_flight.discard(part)
        if word != read.request.parts[part].word:
            self._end(read.request.transfer, fenced(read.request.parts[part]), now)
            return
        read.words_verified.add(part)
        if read.is_verified:
            read.verified_at = self._clock()
            self._finish(read)

    def _failed(self, generation: Generation, flight: Flight, error: KvferryError, now: float) -> None:
        generation.drop_failed(flight)
        self._moved_count += 1
        if error.reason is Reason.PEER_LOST:
            self._posting.lost.add(flight.peer.name)
        read = flight.read
        if flight.purpose is Purpose.PROBE:
            self._end_reads_of(flight.peer.name, error, now)
        if read is None:
            return
        if flight.purpose is Purpose.BLOCKS:
            read.batch_ended(flight.part)
            if not generation.lasting:
                generation.unconfirmed.append(flight)
                read.batches_unconfirmed += 1
                self._posting.suspects.add(flight.peer.name)
        self._end(read.request.transfer, error, now)
        self._finish_if_settled(read)

    # Ends

    def _end_reads_of(self, peer: str, error: KvferryError, now: float) -> None:
        for request in list(self._requests()):
            if peer in request.lane:
                self._end(request.transfer, error, now)

    def _end(self, transfer: str, error: KvferryError, now: float) -> None:
        error.let_go()
        waiting = self._queue.remove(transfer)
        if waiting is not None:
            self._moved_count += 1
            self._deadlines.drop(transfer)
            self._on_finished(ActiveRead(waiting, failure=error).outcome(self._clock()))
            return
        active = self._active.get(transfer)
        if active is None or active.ending:
            return
        active.failure = error
        active.settle_at = now + self._bounds.settle_seconds
        active.drop_rest()
        for generation in self._generations.all():
            generation.stop(active)
        self._finish_if_settled(active)

    def _finish_if_settled(self, read: ActiveRead) -> None:
        if read.ending and read.is_settled and read.request.transfer in self._active:
            self._finish(read)

    def _finish(self, read: ActiveRead) -> None:
        self._moved_count += 1
        self._active.remove(read.request)
        self._deadlines.drop(read.request.transfer)
        self._on_finished(read.outcome(self._clock()))

    # Rollovers

    def _roll_over(self, now: float) -> None:
        for read in self._active:
            if not read.ending or not (read.batches_unconfirmed or now >= read.settle_at):
                continue
            if self._skips_rollover:
                self._abandon(read)
                continue
            for generation in self._generations.disposable():
                if generation.has_blocks_of(read):
                    self._posting.suspects.update(f.peer.name for f in generation.flights if f.read is read)
                    self._generations.retire(generation, now + self._bounds.retire_seconds)

    def _abandon(self, read: ActiveRead) -> None:
        """Say that a read has ended of which bytes may still arrive. For tests alone."""
        for generation in self._generations.disposable():
            generation.unconfirmed = [flight for flight in generation.unconfirmed if flight.read is not read]
            for flight in generation.flights:
                flight.read = None if flight.read is read else flight.read
        read.batches_in_flight = read.batches_unconfirmed = 0
        self._finish(read)

    def _destroy(self, generation: Generation) -> None:
        for flight in self._generations.destroy(generation):
            read = flight.read
            if read is None:
                continue
            if flight.batch is None:
                read.words_in_flight.discard(flight.part)
            elif flight in generation.unconfirmed:
                read.batches_unconfirmed -= 1
            else:
                part = read.batch_ended(flight.part)
                if not read.ending:
                    part.todo.appendleft(flight.batch)
            self._finish_if_settled(read)
        self._moved_count += 1

    def _requests(self) -> Iterator[ReadRequest]:
        yield from self._queue.waiting()
        yield from (read.request for read in self._active)
