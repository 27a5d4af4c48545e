"""A small read of mapped memory, from its first byte to its lease words, without a step of the executor.

It is the executor's way of a read, cut down to what is left of it where copies are over within microseconds and lease
words lie in memory. What goes otherwise is handed to the executor as it stands.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from kvferry.core.errors import Fenced, KvferryError
from kvferry_dataplane.paths import Path
from kvferry_dataplane.reads.active import ActiveRead
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.generation import Flight, Generation, Purpose
from kvferry_dataplane.reads.generations import Generations
from kvferry_dataplane.reads.request import ReadBounds, ReadPart, ReadRequest
from kvferry_dataplane.reads.routing import Routing


@dataclass(slots=True)
class Begun:
    """A read that was begun; it is over if nothing is in flight and no flight has failed."""

    read: ActiveRead
    flights: list[Flight] = field(default_factory=list)
    """Copies that are under way."""
    refused: tuple[Flight, KvferryError] | None = None
    """What an agent refused, and why."""

    @property
    def is_over(self) -> bool:
        """Whether its outcome can be told."""
        return not self.flights and self.refused is None


class AtOnce:
    """Reads mapped memory on the caller's thread, while its agent has nothing in flight."""

    def __init__(
        self, generations: Generations, routing: Routing, bounds: ReadBounds, clock: Callable[[], float]
    ) -> None:
        self._generations = generations
        self._routing = routing
        self._bounds = bounds
        self._clock = clock

    def read(self, request: ReadRequest) -> Begun | None:
        """Copy, wait for ``at_once_seconds`` at most, and verify; None if it is not begun: it is large, or not all of
        it is mapped, or a peer has died, which a step tells as it does of any read.
        """
        try:
            routes = [self._routing.route(part) for part in request.parts]
        except KvferryError:
            return None
        known = [route for route in routes if route is not None and self._bounds.reads_at_once(route, request)]
        if len(known) < len(routes):
            return None
        begun = Begun(ActiveRead(request))
        try:
            begun.read.begin(known, self._bounds)
        except KvferryError as error:
            error.let_go()
            begun.read.failure = error
            return begun
        mapped = self._generations.current(Path.LOCAL)
        self._copy(begun, mapped.agent)
        self._wait(begun, mapped.agent)
        if begun.is_over:
            self._verify(begun, mapped)
        return begun

    def _copy(self, begun: Begun, agent: ReadAgent) -> None:
        read = begun.read
        posted_at = self._clock()
        for number, part in enumerate(read.parts):
            while part.todo:
                read.first_posted_at = part.first_posted_at = posted_at
                batch = read.take_batch(number)
                flight = Flight(Purpose.BLOCKS, part.source.peer, 0, read, number, batch)
                try:
                    flight.handle = agent.read_blocks(part.source, batch, read.request.priority, awaited=True)
                except KvferryError as error:
                    begun.refused = flight, error
                    return
                begun.flights.append(flight)

    def _wait(self, begun: Begun, agent: ReadAgent) -> None:
        read = begun.read
        until = self._clock() + self._bounds.at_once_seconds
        for flight in list(begun.flights):
            agent.wait(flight.handle, until - self._clock())
            try:
                if not agent.is_done(flight.handle):
                    return
            except KvferryError as error:
                begun.flights.remove(flight)
                begun.refused = begun.refused or (flight, error)
                return
            begun.flights.remove(flight)
            part = read.batch_ended(flight.part)
            part.received_bytes += flight.in_flight_bytes
            part.device_seconds += agent.device_seconds(flight.handle)
            read.last_arrived_at = self._clock()

    def _verify(self, begun: Begun, mapped: Generation) -> None:
        read, agent, cell = begun.read, mapped.agent, mapped.free_cells[0]
        for number, part in enumerate(read.parts):
            try:
                agent.read_word(part.source, cell)
            except KvferryError as error:
                flight = Flight(Purpose.WORD, part.source.peer, 0, read, number, cell=mapped.free_cells.popleft())
                begun.refused = flight, error
                return
            if agent.word(cell) != part.source.word:
                read.failure = fenced(part.source)
                return
            read.words_verified.add(number)
        read.verified_at = self._clock()


def fenced(source: ReadPart) -> Fenced:
    """The failure of a read whose lease did not hold to the end."""
    return Fenced(f"the lease on {source.peer.name} ended while it was read")
