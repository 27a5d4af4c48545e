"""Faults: each has a name, does its damage in :meth:`Fault.inject`, and takes it back in :meth:`Fault.heal`.

What was killed is brought back by the site's supervisor. A fault's end is the moment from which nothing stands in the
way any more: when :meth:`Fault.heal` returns, and every killed process says that it serves.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from tests.chaos.load import Load
from tests.chaos.site import Managed, Site

RESTART_TIMEOUT_S = 45.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault happens to."""

    site: Site
    load: Load
    random: random.Random
    hold_s: float
    """How long faults last that have a duration; past every time-out in the long run."""


class Fault(ABC):
    """One fault, used once."""

    name: str
    kind: str
    """What it is counted under."""

    @abstractmethod
    async def inject(self, scene: Scene) -> None:
        """Do the damage."""

    async def last(self, scene: Scene) -> None:
        """Let it last."""
        await asyncio.sleep(scene.hold_s)

    @abstractmethod
    async def heal(self, scene: Scene) -> None:
        """Take it back."""


async def served_again(managed: Managed, since: float) -> None:
    """Wait until the supervisor has brought a process back that was killed at ``since``.

    Raises:
        TimeoutError: it did not.
    """
    async with asyncio.timeout(RESTART_TIMEOUT_S):
        while managed.ready_at <= since or managed.child().status is not None:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)
