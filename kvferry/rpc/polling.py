"""Polling: an event loop that looks for the next message for a while before it sleeps.

To wake a core that sleeps takes as long as much of the work that a small pull makes, once for each process that it
passes through. Where cores are plenty, a loop that is still awake when the next message comes saves that.
"""

import asyncio
import os
import time
from collections.abc import Callable

POLL_S_MAX = 0.1
"""A loop is kept awake at most so long after a message."""


class Polling:
    """Keeps a loop awake for so long after each message. Used on that loop alone."""

    def __init__(
        self, seconds: float, may: Callable[[], bool] = lambda: True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``seconds``: 0 lets the loop sleep at once. While ``may`` says no the loop is not kept awake."""
        self._seconds = seconds
        self._may = may
        self._clock = clock
        self._until = 0.0
        self._awake = False

    def message_passed(self) -> None:
        """A message came or went; another is expected soon."""
        if not self._seconds:
            return
        self._until = self._clock() + self._seconds
        if not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Have the loop turn once more: with something to call it does not wait for its sockets."""
        if self._clock() >= self._until or not self._may():
            self._awake = False
            return
        # Whoever waits for this core is likely the one that sends the next message.
        os.sched_yield()
        asyncio.get_running_loop().call_soon(self._turn)
