"""Whose batch is asked for next: higher priorities first, equal ones in fair shares, and nobody waits for ever. Pure.

Sources of one priority share by start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng: Start-time Fair Queueing: A
Scheduling Algorithm for Integrated Services Packet Switching Networks, IEEE/ACM Transactions on Networking 5(5), 1997),
with equal weights: a batch of ``l`` bytes of source ``f`` has the start tag ``S = max(v, F_f)`` and the finish tag
``F_f = S + l``, where ``v`` is the start tag of the batch that was served last. The least start tag is served next.
While two sources both have something to ask for, what they were served differs by no more than one largest batch of
each.

While a higher priority is being served, lower ones ask for nothing, so that it has the wire to itself. Two bounds keep
that from lasting: a priority that has not moved for ``patience_seconds`` holds nobody back any more; and a priority
that has waited so long gets one batch, then waits again.
"""

from collections.abc import Collection, Iterable

Claim = tuple[int, str]
"""A priority and a source that has something to ask for."""

_SOURCES_KEPT = 256


class FairShares:
    """The tags of the sources of one priority, in bytes of virtual time."""

    def __init__(self) -> None:
        self._virtual = 0.0
        self._finish: dict[str, float] = {}

    def start_tag(self, source: str) -> float:
        """The start tag of a source's next batch."""
        return max(self._virtual, self._finish.get(source, 0.0))

    def served(self, source: str, batch_bytes: int) -> None:
        """A source was served so much."""
        self._virtual = self.start_tag(source)
        self._finish.pop(source, None)
        # Entered last: of equal tags, who was served longest ago comes first.
        self._finish[source] = self._virtual + batch_bytes
        if len(self._finish) > 2 * _SOURCES_KEPT:
            # Who is forgotten begins at the virtual time again; it matters least for those whose tags are the least.
            kept = set(sorted(self._finish, key=self.start_tag)[-_SOURCES_KEPT:])
            self._finish = {name: tag for name, tag in self._finish.items() if name in kept}

    def first(self, sources: Collection[str]) -> str:
        """Who comes next."""
        served_at = {name: order for order, name in enumerate(self._finish)}
        return min(sources, key=lambda name: (self.start_tag(name), served_at.get(name, -1)))


class Turns:
    """Orders claims. Times are in seconds, on a clock that only grows."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._shares: dict[int, FairShares] = {}
        self._waiting_since: dict[int, float] = {}
        self._moved_at: dict[int, float] = {}

    def begin(self, claims: Iterable[Claim], priorities: Collection[int], now: float) -> None:
        """Start a round: ``priorities`` are those of all reads that are active, others are forgotten."""
        claiming = {priority for priority, _ in claims}
        self._waiting_since = {level: self._waiting_since.get(level, now) for level in claiming}
        self._shares = {level: shares for level, shares in self._shares.items() if level in priorities}
        self._moved_at = {level: at for level, at in self._moved_at.items() if level in priorities}

    def moved(self, priority: int, now: float) -> None:
        """Something of a priority was asked for or has arrived."""
        self._moved_at[priority] = now

    def next(self, claims: Collection[Claim], in_flight: Collection[int], now: float) -> Claim | None:
        """Whose turn it is, of ``claims``; None if all of them have to wait.

        ``in_flight``: the priorities of reads of which something was asked for and has not arrived.
        """
        if not claims:
            return None
        highest = max(priority for priority, _ in claims)
        level = self._overdue(claims, now)
        if level is None:
            if any(other > highest and self._is_moving(other, now) for other in in_flight):
                return None
            level = highest
        shares = self._shares.setdefault(level, FairShares())
        return level, shares.first([source for priority, source in claims if priority == level])

    def served(self, claim: Claim, batch_bytes: int, now: float) -> None:
        """A claim was served."""
        priority, source = claim
        self._shares.setdefault(priority, FairShares()).served(source, batch_bytes)
        self._waiting_since[priority] = now
        self.moved(priority, now)

    def next_change(self, now: float) -> float | None:
        """When a claim that has to wait may have its turn only because time has passed; None if none does."""
        times = [*self._waiting_since.values(), *self._moved_at.values()] if self._waiting_since else []
        later = [at + self._patience for at in times if at + self._patience > now]
        return min(later, default=None)

    def _overdue(self, claims: Collection[Claim], now: float) -> int | None:
        """The priority that has waited longest, if it was for too long."""
        levels = {priority for priority, _ in claims}
        level = min(levels, key=lambda level: (self._waiting_since.get(level, now), -level))
        return level if now - self._waiting_since.get(level, now) >= self._patience else None

    def _is_moving(self, priority: int, now: float) -> bool:
        return now - self._moved_at.get(priority, now) < self._patience
