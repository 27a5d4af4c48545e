"""Executes reads: one thread calls :meth:`ReadExecutor.step` over and over. Knows neither threads nor clocks.

A read goes through: queue → batches (bounded in bytes and descriptors) → lease words → outcome. A read that ends
early posts nothing more and waits ``settle_seconds`` for its batches in flight. If one is still not confirmed, nothing
but the end of the agent can stop it from writing: a *rollover*. The agent takes no new work, goes on for other reads'
batches for ``retire_seconds``, and is destroyed; only then is the read's outcome told.

A peer whose batches made a rollover necessary is *suspect*: a lease word is read from it into scratch memory first, so
that a peer that stays stuck costs one rollover and not one for each of its reads.
"""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

from kvferry.core.errors import Cancelled, DeadlineExceeded, Fenced, KvferryError, NotReady, PeerError
from kvferry.core.reasons import Reason
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.active import ActiveRead
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.generation import Flight, Generation, Purpose
from kvferry_dataplane.reads.generations import Generations
from kvferry_dataplane.reads.queue import Lane, ReadQueue
from kvferry_dataplane.reads.request import ReadBounds, ReadOutcome, ReadRequest

_DEADLINES_SLACK = 256


class ReadExecutor:
    """The reads of one pool. Every method takes the time, in seconds, on a clock that only grows."""

    def __init__(
        self,
        make_agent: Callable[[int], ReadAgent],
        on_finished: Callable[[ReadOutcome], None],
        bounds: ReadBounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``make_agent`` gets the generation's number, from 1. ``clock`` is read for figures only."""
        self._clock = clock
        self._bounds = bounds or ReadBounds()
        self._on_finished = on_finished
        self._generations = Generations(make_agent)
        self._queue = ReadQueue()
        self._active: dict[str, ActiveRead] = {}
        self._lanes: Counter[Lane] = Counter()
        self._deadlines: list[tuple[float, str]] = []
        self._suspects: set[str] = set()
        self._turns = count(1)
        self._leaving: dict[str, Peer] = {}
        self.progress_count = 0
        """Grows whenever something was posted or confirmed."""

    @property
    def rollovers(self) -> int:
        """Agents that had to be given up."""
        return self._generations.rollovers

    @property
    def queued_count(self) -> int:
        """Reads that wait for their turn."""
        return len(self._queue)

    # Commands

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
        self._generations.current().connect(peer)

    def disconnect(self, peer: Peer, now: float) -> None:
        """Forget a peer: its reads end as PEER_LOST."""
        lost = PeerError(f"peer {peer.name} was disconnected", reason=Reason.PEER_LOST)
        self._end_reads_of(peer.name, lost, now)
        self._suspects.discard(peer.name)
        self._leaving[peer.name] = peer

    def submit(self, request: ReadRequest) -> None:
        """Queue a read. Its transfer id must be unused."""
        self._queue.push(request)
        heapq.heappush(self._deadlines, (request.deadline, request.transfer))
        if len(self._deadlines) > 2 * (len(self._queue) + len(self._active)) + _DEADLINES_SLACK:
            # Reads that are over leave their deadlines behind.
            live = [*self._queue.waiting(), *(read.request for read in self._active.values())]
            self._deadlines = [(request.deadline, request.transfer) for request in live]
            heapq.heapify(self._deadlines)

    def cancel(self, transfer: str, now: float) -> None:
        """End a read early; nothing happens if it is over."""
        self._end(transfer, Cancelled("the read was cancelled"), now)

    def close(self, now: float) -> None:
        """End every read and destroy every agent."""
        for transfer in [request.transfer for request in self._queue.waiting()] + list(self._active):
            self._end(transfer, NotReady("the data plane is shutting down"), now)
        for generation in self._generations.all():
            self._destroy(generation)

    # The loop

    def step(self, now: float) -> float | None:
        """Do what can be done at once.

        Returns seconds until the next call is needed: 0 while something can begin or is in flight, None if only a
        command can bring new work.
        """
        self._end_overdue(now)
        self._activate(now)
        self._post(now)
        self._poll(now)
        self._roll_over(now)
        self._drop_unwanted(now)
        for generation in self._generations.due(now):
            self._destroy(generation)
        self._let_peers_go()
        return self._wait(now)

    def _end_overdue(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, transfer = heapq.heappop(self._deadlines)
            self._end(transfer, DeadlineExceeded("the read's deadline passed"), now)

    def _activate(self, now: float) -> None:
        for request in self._startable():
            self._queue.remove(request.transfer)
            self._start(request, now)

    def _startable(self) -> Iterator[ReadRequest]:
        """Waiting reads for which there is room now; who takes one starts it before the next."""
        for request in self._queue.heads():
            pieces = sum(read.request.pieces_max for read in self._active.values())
            if self._active and pieces + request.pieces_max > self._bounds.active_pieces_max:
                return
            if self._lanes[request.lane] < self._bounds.active_reads_per_lane:
                yield request

    def _start(self, request: ReadRequest, now: float) -> None:
        read = ActiveRead(request)
        self._active[request.transfer] = read
        self._lanes[request.lane] += 1
        try:
            read.begin(self._bounds)
        except KvferryError as error:
            self._end(request.transfer, error, now)

    def _post(self, now: float) -> None:
        """Post in rounds, one batch of each read; lower priorities only where higher ones have nothing to post."""
        budget = self._bounds.step_bytes_max
        served: int | None = None
        ready = [read for read in self._active.values() if not read.ending]
        for read in sorted(ready, key=lambda read: (-read.request.priority, read.turn)):
            if budget <= 0 or (served is not None and read.request.priority < served):
                return
            posted_bytes = self._post_for(read, now)
            if posted_bytes:
                served = read.request.priority
                budget -= posted_bytes

    def _post_for(self, read: ActiveRead, now: float) -> int:
        """Post what comes next for a read; returns the bytes asked for."""
        try:
            generation = self._generations.current()
            if read.has_arrived:
                return sum(self._post_word(generation, read, part, now) for part in range(len(read.todo)))
            part = read.next_part()
            if part is None or read.batches_in_flight >= self._bounds.batches_in_flight_per_read:
                return 0
            return self._post_batch(generation, read, part, now)
        except KvferryError as error:
            self._end(read.request.transfer, error, now)
            return 0

    def _post_batch(self, generation: Generation, read: ActiveRead, part: int, now: float) -> int:
        peer = read.request.parts[part].peer
        if peer.name in self._suspects:
            self._probe(generation, peer, read.request.parts[part].slot, now)
            return 0
        batch = read.todo[part][0]
        in_flight = generation.bytes_in_flight(peer.name)
        if in_flight and in_flight + batch.total_bytes > self._bounds.bytes_in_flight_per_peer:
            return 0
        if not generation.connect(peer):
            return 0
        read.take_batch(part, self._bounds)
        read.turn = next(self._turns)
        read.first_posted_at = self._clock() if read.first_posted_at is None else read.first_posted_at
        flight = Flight(Purpose.BLOCKS, peer, 0, read, part, batch)
        read.batches_in_flight += 1
        generation.flights.append(flight)
        self.progress_count += 1
        try:
            flight.handle = generation.agent.read_blocks(peer, batch)
        except KvferryError as error:
            self._failed(generation, flight, error, now)
        return batch.total_bytes

    def _post_word(self, generation: Generation, read: ActiveRead, part: int, now: float) -> int:
        if part in read.words_verified or part in read.words_in_flight or not generation.free_cells:
            return 0
        source = read.request.parts[part]
        if not generation.connect(source.peer):
            return 0
        cell = generation.free_cells.popleft()
        flight = Flight(Purpose.WORD, source.peer, 0, read, part, cell=cell)
        read.words_in_flight.add(part)
        generation.flights.append(flight)
        self.progress_count += 1
        try:
            flight.handle = generation.agent.read_word(source.peer, source.slot, cell)
        except KvferryError as error:
            self._failed(generation, flight, error, now)
        return 1

    def _probe(self, generation: Generation, peer: Peer, slot: int, now: float) -> None:
        if generation.has_probe(peer.name) or not generation.free_cells or not generation.connect(peer):
            return
        flight = Flight(Purpose.PROBE, peer, 0, None, cell=generation.free_cells.popleft())
        generation.flights.append(flight)
        try:
            flight.handle = generation.agent.read_word(peer, slot, flight.cell)
        except KvferryError as error:
            self._failed(generation, flight, error, now)

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
        self.progress_count += 1
        if flight.purpose is Purpose.PROBE:
            self._suspects.discard(flight.peer.name)
        word = generation.agent.word(flight.cell) if flight.purpose is Purpose.WORD else 0
        if flight.purpose is not Purpose.BLOCKS:
            generation.free_cells.append(flight.cell)
        read = flight.read
        if read is None:
            return
        if flight.batch is not None:
            read.batches_in_flight -= 1
            read.received_bytes += flight.batch.total_bytes
            read.last_arrived_at = self._clock()
            self._finish_if_settled(read)
        else:
            self._verify(read, flight.part, word, now)

    def _verify(self, read: ActiveRead, part: int, word: int, now: float) -> None:
        read.words_in_flight.discard(part)
        if word != read.request.parts[part].word:
            peer = read.request.parts[part].peer.name
            self._end(read.request.transfer, Fenced(f"the lease on {peer} ended while it was read"), now)
            return
        read.words_verified.add(part)
        if read.is_verified:
            read.verified_at = self._clock()
            self._finish(read)

    def _failed(self, generation: Generation, flight: Flight, error: KvferryError, now: float) -> None:
        generation.flights.remove(flight)
        generation.broken.add(flight.peer.name)
        self.progress_count += 1
        read = flight.read
        if flight.purpose is Purpose.PROBE:
            self._end_reads_of(flight.peer.name, error, now)
        if read is None:
            return
        if flight.purpose is Purpose.BLOCKS:
            generation.unconfirmed.append(flight)
            read.batches_in_flight -= 1
            read.batches_unconfirmed += 1
            self._suspects.add(flight.peer.name)
        # A word that failed leaves its cell unused: it may still arrive there.
        self._end(read.request.transfer, error, now)

    # Ends

    def _end_reads_of(self, peer: str, error: KvferryError, now: float) -> None:
        requests = self._queue.waiting() + [read.request for read in self._active.values()]
        for request in requests:
            if peer in request.lane:
                self._end(request.transfer, error, now)

    def _end(self, transfer: str, error: KvferryError, now: float) -> None:
        # A traceback refers to frames, and those to the agent, which could then not be destroyed.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        waiting = self._queue.remove(transfer)
        if waiting is not None:
            read = ActiveRead(waiting, failure=error)
            self._on_finished(read.outcome(self._clock()))
            return
        active = self._active.get(transfer)
        if active is None or active.ending:
            return
        active.failure = error
        active.settle_at = now + self._bounds.settle_seconds
        active.drop_rest()
        for generation in self._generations.all():
            for flight in generation.flights:
                if flight.read is active and flight.purpose is Purpose.WORD:
                    flight.read = None
        self._finish_if_settled(active)

    def _finish_if_settled(self, read: ActiveRead) -> None:
        if read.ending and read.is_settled:
            self._finish(read)

    def _finish(self, read: ActiveRead) -> None:
        del self._active[read.request.transfer]
        self._lanes[read.request.lane] -= 1
        if not self._lanes[read.request.lane]:
            del self._lanes[read.request.lane]
        self._on_finished(read.outcome(self._clock()))

    # Rollovers

    def _roll_over(self, now: float) -> None:
        for read in self._active.values():
            if not read.ending or not (read.batches_unconfirmed or now >= read.settle_at):
                continue
            for generation in self._generations.all():
                if generation.has_blocks_of(read):
                    self._suspects.update(f.peer.name for f in generation.flights if f.read is read)
                    self._generations.retire(generation, now + self._bounds.retire_seconds)

    def _drop_unwanted(self, now: float) -> None:
        """Give an agent up that would be polled for ever for flights that nobody waits for."""
        wanted = {peer for read in self._active.values() for peer in read.request.lane}
        for generation in self._generations.all():
            probes = any(f.purpose is Purpose.PROBE and f.peer.name in wanted for f in generation.flights)
            blocks = any(f.read is not None for f in generation.flights)
            if not generation.flights or probes or blocks:
                generation.unwanted_since = None
            elif generation.unwanted_since is None:
                generation.unwanted_since = now
            elif now >= generation.unwanted_since + self._bounds.orphan_seconds:
                self._generations.retire(generation, now)

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
                read.batches_in_flight -= 1
                if not read.ending:
                    read.todo[flight.part].appendleft(flight.batch)
            self._finish_if_settled(read)
        self.progress_count += 1

    def _let_peers_go(self) -> None:
        for name, peer in list(self._leaving.items()):
            if not any(f.peer.name == name for g in self._generations.all() for f in g.flights):
                del self._leaving[name]
                self._generations.forget(peer)

    def _wait(self, now: float) -> float | None:
        if self._generations.in_flight() or any(not read.ending for read in self._active.values()):
            return 0.0
        # Reads that ended in this step may have made room.
        if next(self._startable(), None) is not None:
            return 0.0
        timers = [read.settle_at for read in self._active.values()]
        if self._deadlines:
            timers.append(self._deadlines[0][0])
        if (destruction := self._generations.next_destruction()) is not None:
            timers.append(destruction)
        return max(min(timers) - now, 0.0) if timers else None
