"""What passes between the simulated parties without kvferry: handles on their way, and what came of every pull."""

import random
from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.memory import Published

HANDLES_KEPT = 24
STALE_CHANCE = 0.1
"""Of a pull of a handle that was pulled before."""


@dataclass(frozen=True, slots=True)
class Handle:
    """A handle on offer."""

    data: bytes
    publication: str
    worker: str
    token_count: int
    readers: int


@dataclass(eq=False)
class Router:
    """Handles of all prefill workers, and the book of publications and outcomes."""

    handles: list[Handle] = field(default_factory=list)
    published: dict[tuple[str, str], Published] = field(default_factory=dict)
    """By worker and name of the publication."""
    taken: Counter[bytes] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    publications: Counter[str] = field(default_factory=Counter)

    def take(self, worker: str, seeded: random.Random) -> Handle | None:
        """A handle for a worker to pull: mostly one that was not pulled as often as it may be."""
        known = [handle for handle in self.handles if handle.worker != worker]
        fresh = [handle for handle in known if self.taken[handle.data] < max(handle.readers, 1)]
        chosen = known if seeded.random() < STALE_CHANCE else fresh
        if not chosen:
            return None
        handle = seeded.choice(chosen)
        self.taken[handle.data] += 1
        return handle

    def offer(self, handle: Handle, published: Published) -> None:
        """A handle is there to be pulled; old ones stay a while, so that some are pulled too late or twice."""
        self.published[handle.worker, handle.publication] = published
        self.handles.append(handle)
        del self.handles[:-HANDLES_KEPT]
