"""When the executor has something to do again. Pure."""

from dataclasses import dataclass

from kvferry_dataplane.reads.activation import ActiveReads
from kvferry_dataplane.reads.deadlines import Deadlines
from kvferry_dataplane.reads.generations import Generations
from kvferry_dataplane.reads.posting import Posting
from kvferry_dataplane.reads.queue import ReadQueue
from kvferry_dataplane.reads.request import ReadBounds


@dataclass(frozen=True, slots=True)
class NextStep:
    """Looks at all that an executor has."""

    bounds: ReadBounds
    generations: Generations
    queue: ReadQueue
    active: ActiveReads
    deadlines: Deadlines
    posting: Posting

    def wait(self, now: float, *, moved: bool) -> float | None:
        """Seconds until a step is needed: 0 while something has to be polled or moves, None if nothing is waited for
        but commands and what wakes the thread. ``moved``: the last step did something.
        """
        if self.generations.to_be_polled() or (moved and (self.active or self.queue)):
            return 0.0
        if not self.generations.in_flight() and any(not read.ending for read in self.active):
            return 0.0
        timers = [read.settle_at for read in self.active if read.ending and read.settle_at > now]
        timers += [at for at in self._timers(now) if at is not None]
        return max(min(timers) - now, 0.0) if timers else None

    def _timers(self, now: float) -> tuple[float | None, ...]:
        waiting = (request for request in self.queue.eldest() if not self.active.has_room(request))
        elders = (request.accepted_at + self.bounds.patience_seconds for request in waiting)
        next_elder = min((at for at in elders if at > now), default=None)
        return self.deadlines.next(), self.generations.next_destruction(), self.posting.next_change(now), next_elder
