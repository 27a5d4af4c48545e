"""The end of a data plane that was told to end: after what it holds, not before.

Control and data planes of a worker are often told at the same moment. The data plane stays for as long as its control
needs it, which control says by `depart` or by ending its session. Without a control only what is held here counts.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

_log = structlog.get_logger("kvferry.dataplane")


class Holder(Protocol):
    """Who knows what is still held."""

    @property
    def lease_count(self) -> int:
        """Leases that hold."""
        ...

    @property
    def read_count(self) -> int:
        """Reads that are queued or running."""
        ...

    @property
    def connected(self) -> bool:
        """Whether control's session is in place."""
        ...

    def say_leaving(self) -> None:
        """Let control know."""
        ...


class Departure:
    """From the first signal to the end. Belongs to the event loop."""

    def __init__(self, timeout_s: float) -> None:
        """``timeout_s`` bounds the waiting; 0: there is none."""
        self._timeout_s = timeout_s
        self._signal_count = 0
        self._told = asyncio.Event()
        self._changed = asyncio.Event()
        self._let_go = False

    @property
    def begun(self) -> bool:
        """Whether a signal has come."""
        return self._told.is_set()

    def signalled(self) -> None:
        """SIGTERM or SIGINT came; a second one ends the waiting."""
        self._signal_count += 1
        self._told.set()
        self._changed.set()

    def let_go(self) -> None:
        """Control needs this data plane no more."""
        self._let_go = True
        self._changed.set()

    def changed(self) -> None:
        """A lease, a read or the session has ended."""
        self._changed.set()

    async def wait(self, holder: Holder) -> None:
        """Return when the data plane may end."""
        await self._told.wait()
        if not self._timeout_s:
            return
        _log.info("leaving", leases=holder.lease_count, reads=holder.read_count, timeout_s=self._timeout_s)
        holder.say_leaving()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._until(lambda: self._signal_count > 1 or self._let_go or _is_free(holder))
        except TimeoutError:
            _log.warning("leaving all the same", leases=holder.lease_count, reads=holder.read_count)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def _is_free(holder: Holder) -> bool:
    return not (holder.connected or holder.lease_count or holder.read_count)
