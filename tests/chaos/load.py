"""Continuous load: publications with random contents, pulled by random workers, released, left to expire, cancelled."""

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from tests.chaos.site import Site
from tests.chaos.wire import EngineGone, PublishOrder, Pulled, PullOrder

FLOWS = 4
PAUSE_S = 0.12
"""Mean time between two publications of a flow: the load that two cores bear beside everything else."""
TOKENS_TINY, TOKENS_MAX = 16, 128 * 16
WRONG_KEPT_MAX = 50
HANDLES_KEPT = 64
_NOT_HERE = "ENGINE_KILLED"


@dataclass
class Tally:
    """What became of all pulls."""

    started: int = 0
    succeeded: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """By reason."""
    refused: Counter[str] = field(default_factory=Counter)
    """Not begun, since the engine had no blocks or no pool: by reason."""
    lost: int = 0
    """Whose engine was killed before they ended."""
    by_path: Counter[str] = field(default_factory=Counter)
    unsettled: int = 0
    published: int = 0
    publish_failed: Counter[str] = field(default_factory=Counter)
    wrong_bytes: int = 0
    wrong: list[str] = field(default_factory=list)
    """What the first wrong ones were."""
    late_max_s: float = 0.0
    late: list[str] = field(default_factory=list)
    """Pulls that ended more than the bound past their deadline."""
    excluded: int = 0
    """Pulls whose own engine was frozen, so that it could not look at its clock."""
    seconds: list[tuple[float, float]] = field(default_factory=list)
    """End and duration of pulls that succeeded."""

    @property
    def ended(self) -> int:
        """Pulls with a known end."""
        return self.succeeded + self.cancelled + self.failed.total() + self.refused.total() + self.lost


LATE_BOUND_S = 1.0


class Load:
    """Drives the engines of a site until told to stop."""

    def __init__(self, site: Site, seed: int, *, pause_s: float = PAUSE_S, keep_seconds: bool = False) -> None:
        self._site = site
        self._random = random.Random(seed)  # noqa: S311 - chaos is to be repeated, not to be secret
        self._pause_s = pause_s
        self._keep_seconds = keep_seconds
        self._stopping = False
        self.tally = Tally()
        self.handles: deque[tuple[str, PullOrder]] = deque(maxlen=HANDLES_KEPT)
        """Pulls of publications that may have ended since, with the destination's name."""

    def stop(self) -> None:
        """Begin nothing more; what is under way goes on to its end."""
        self._stopping = True

    async def run(self) -> None:
        """Run all flows until :meth:`stop`, and wait for what they have begun."""
        async with asyncio.TaskGroup() as flows:
            for _ in range(FLOWS):
                flows.create_task(self._flow())

    async def _flow(self) -> None:
        draw = self._random
        while not self._stopping:
            await asyncio.sleep(draw.expovariate(1 / self._pause_s))
            source = draw.choice(self._site.sources)
            tokens = TOKENS_TINY if draw.random() < 0.3 else draw.randint(1, draw.choice((256, TOKENS_MAX)))
            readers = draw.choice((0, 1, 1, 1, 2))
            order = PublishOrder(
                seed=draw.getrandbits(48),
                token_count=tokens,
                ttl_s=draw.choice((0.05, 0.3, 2.0, 5.0, 5.0)),
                readers=readers,
            )
            await self.move(source, draw.sample(self._site.destinations, max(readers, 1)), order)

    async def move(self, source: str, destinations: list[str], order: PublishOrder) -> list[Pulled]:
        """Publish, pull everywhere, and most times release."""
        draw = self._random
        engine = self._site.engines.get(source)
        if engine is None:
            return []
        try:
            published = await engine.publish(order)
        except EngineGone:
            self.tally.publish_failed[_NOT_HERE] += 1
            return []
        if published.reason:
            self.tally.publish_failed[published.reason] += 1
            return []
        self.tally.published += 1
        async with asyncio.TaskGroup() as pulls:
            tasks = []
            for destination in destinations:
                pull = PullOrder(
                    handle=published.handle,
                    seed=order.seed,
                    token_count=order.token_count,
                    timeout_s=draw.choice((0.5, 1.5, 4.0)),
                    priority=draw.randint(-5, 5),
                    cancel_after_s=draw.expovariate(1 / 0.02) if draw.random() < 0.15 else None,
                )
                self.handles.append((destination, pull))
                tasks.append(pulls.create_task(self.pull(destination, pull)))
        if draw.random() < 0.7:
            try:
                await engine.release(published.name)
            except EngineGone:
                self.tally.publish_failed[_NOT_HERE] += 1
        return [task.result() for task in tasks]

    async def pull(self, destination: str, order: PullOrder) -> Pulled:
        """One pull, counted."""
        tally = self.tally
        tally.started += 1
        engine = self._site.engines.get(destination)
        try:
            pulled = None if engine is None else await engine.pull(order)
        except EngineGone:
            pulled = None
        if pulled is None:
            tally.lost += 1
            return Pulled(state="lost", reason=_NOT_HERE)
        self._count(destination, order, pulled)
        return pulled

    def _count(self, destination: str, order: PullOrder, pulled: Pulled) -> None:
        tally = self.tally
        if pulled.state == "succeeded":
            tally.succeeded += 1
            tally.by_path[pulled.path] += 1
            if self._keep_seconds:
                tally.seconds.append((time.monotonic(), pulled.ended_at - pulled.began_at))
        elif pulled.state == "cancelled":
            tally.cancelled += 1
        else:
            (tally.failed if pulled.state == "failed" else tally.refused)[pulled.reason] += 1
        tally.unsettled += not pulled.settled
        if pulled.wrong_bytes:
            tally.wrong_bytes += pulled.wrong_bytes
            if len(tally.wrong) < WRONG_KEPT_MAX:
                tally.wrong.append(f"{destination}: {pulled} of {order.token_count} tokens")
        if self._site.engine_stopped(destination, pulled.began_at, pulled.ended_at):
            tally.excluded += 1
        elif pulled.state != "refused":
            tally.late_max_s = max(tally.late_max_s, pulled.late_s)
            if pulled.late_s > LATE_BOUND_S:
                tally.late.append(f"{destination}: {pulled}")
