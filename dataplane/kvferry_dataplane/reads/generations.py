"""The reader agents: one that takes new work, and those that are on their way out after a rollover."""

from collections.abc import Callable

from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.generation import Flight, Generation


class Generations:
    """Makes, retires and destroys reader agents."""

    def __init__(self, make_agent: Callable[[int], ReadAgent]) -> None:
        self._make_agent = make_agent
        self._made = 0
        self._current: Generation | None = None
        self._retiring: list[Generation] = []
        self.rollovers = 0

    def current(self) -> Generation:
        """The generation that takes new work.

        Raises:
            TransportFailed: there is none and none can be made.
        """
        if self._current is None:
            self._made += 1
            self._current = Generation(self._made, self._make_agent(self._made))
        return self._current

    def all(self) -> list[Generation]:
        """Every generation that is not destroyed."""
        return [*self._retiring, *([self._current] if self._current is not None else [])]

    def to_be_polled(self) -> bool:
        """Whether anything is in flight that does not tell of its end by itself."""
        return any(not flight.is_ours for generation in self.all() for flight in generation.flights)

    def retire(self, generation: Generation, destroy_at: float) -> None:
        """Give a generation no new work and destroy it by ``destroy_at``."""
        if generation.retire_at is not None:
            return
        generation.retire_at = destroy_at
        self._retiring.append(generation)
        self.rollovers += 1
        if generation is self._current:
            self._current = None

    def due(self, now: float) -> list[Generation]:
        """Retiring generations that have waited long enough, or that nobody waits for."""
        return [g for g in self._retiring if g.retire_at is not None and (now >= g.retire_at or not g.is_awaited())]

    def destroy(self, generation: Generation) -> list[Flight]:
        """Destroy a generation; returns what was in flight or unconfirmed: none of it arrives any more."""
        generation.agent.close()
        if generation in self._retiring:
            self._retiring.remove(generation)
        if generation is self._current:
            self._current = None
        return [*generation.flights, *generation.unconfirmed]

    def forget(self, peer: Peer) -> None:
        """Make every agent without a flight of a peer forget it."""
        for generation in self.all():
            if not any(flight.peer.name == peer.name for flight in generation.flights):
                generation.forget(peer)

    def next_destruction(self) -> float | None:
        """When the next generation is destroyed at the latest."""
        return min((g.retire_at for g in self._retiring if g.retire_at is not None), default=None)
