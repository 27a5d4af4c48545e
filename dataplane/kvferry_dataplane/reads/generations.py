"""The reader agents: for each path one that takes new work, and those that are on their way out after a rollover."""

from collections.abc import Callable, Collection, Mapping

from kvferry_dataplane.paths import Path
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.generation import Flight, Generation, Purpose

RENEW_SECONDS = 5.0
"""Between two agents that are given up since they could not learn a peer."""
FORGOTTEN_MAX = 4
"""Peers that an agent forgets in its life: UCX keeps their connections over TCP until both ends are destroyed."""


class Generations:
    """Makes, retires and destroys reader agents."""

    def __init__(self, make_agent: Callable[[int], ReadAgent], lasting: Mapping[Path, ReadAgent]) -> None:
        """``make_agent`` makes the disposable ones, of the transport; ``lasting`` are those of other paths."""
        self._make_agent = make_agent
        self._lasting = {path: Generation(0, agent, lasting=True) for path, agent in lasting.items()}
        self._made = 0
        self._current: Generation | None = None
        self._retiring: list[Generation] = []
        self.rollovers = 0
        self._renew_from = float("-inf")

    def current(self, path: Path | None = None) -> Generation:
        """The generation that takes new work of a path; by itself, the transport's.

        Raises:
            TransportFailed: there is none and none can be made.
        """
        if path in self._lasting:
            return self._lasting[path]
        if self._current is None:
            self._made += 1
            self._current = Generation(self._made, self._make_agent(self._made))
        return self._current

    def all(self) -> list[Generation]:
        """Every generation that is not destroyed."""
        return [*self._lasting.values(), *self.disposable()]

    def disposable(self) -> list[Generation]:
        """The transport's that are not destroyed."""
        return [*self._retiring, *([self._current] if self._current is not None else [])]

    def in_flight(self) -> bool:
        """Whether anything was asked for and not confirmed."""
        return any(generation.flights for generation in self.all())

    def to_be_polled(self) -> bool:
        """Whether something is in flight whose end nobody tells."""
        return any(generation.flights and not generation.agent.wakes for generation in self.all())

    def retire(self, generation: Generation, destroy_at: float) -> None:
        """Give a generation no new work and destroy it by ``destroy_at``."""
        if generation.lasting or generation.retire_at is not None:
            return
        generation.retire_at = destroy_at
        self._retiring.append(generation)
        self.rollovers += 1
        if generation is self._current:
            self._current = None

    def retire_unwanted(self, wanted: Collection[str], now: float, after_seconds: float) -> None:
        """Give up agents that could not learn a peer, that would be polled for ever for nobody's flights, and idle ones
        that hold connections of peers that they have forgotten.

        ``wanted``: names of the peers that reads want.
        """
        if self._current is not None and self._current.refused and now >= self._renew_from:
            # Not too often: the peer may be what is wrong.
            self._renew_from = now + RENEW_SECONDS
            self.retire(self._current, now + after_seconds)
        if self._current is not None and self._current.forgotten >= FORGOTTEN_MAX and not self._current.flights:
            self.retire(self._current, now)
        for generation in self.disposable():
            probes = any(f.purpose is Purpose.PROBE and f.peer.name in wanted for f in generation.flights)
            blocks = any(f.read is not None for f in generation.flights)
            if not generation.flights or probes or blocks:
                generation.unwanted_since = None
            elif generation.unwanted_since is None:
                generation.unwanted_since = now
            elif now >= generation.unwanted_since + after_seconds:
                self.retire(generation, now)

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

    def let_go(self, leaving: dict[str, Peer]) -> None:
        """Forget peers that leave, by their names, and take them out, once nothing of theirs is in flight."""
        for name, peer in list(leaving.items()):
            if not any(flight.peer.name == name for generation in self.all() for flight in generation.flights):
                del leaving[name]
                for generation in self.all():
                    generation.forget(peer)

    def next_destruction(self) -> float | None:
        """When the next generation is destroyed at the latest."""
        return min((g.retire_at for g in self._retiring if g.retire_at is not None), default=None)
