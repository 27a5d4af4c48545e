"""The threads on which a data plane sums its pool, beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion
from kvferry.core.errors import KvferryError, NotReady
from kvferry.device.native import CancelFlag

Digest = Callable[[DigestRegion], Words]
Result = TypeVar("Result")

WORKERS = 2
"""Digests at a time, so that a small one does not wait for a large one; each has its share of the copy threads."""


class DigestThreads:
    """Runs work that sums the pool. Made, used and closed on the event loop."""

    def __init__(
        self,
        digest: Callable[[DigestRegion, CancelFlag], Words],
        prepare_thread: Callable[[], None],
        on_defect: Callable[[BaseException], None],
    ) -> None:
        """``digest`` sums a region of the pool on the calling thread, and ends as Cancelled once its flag is raised."""
        self._digest = digest
        self._on_defect = on_defect
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(WORKERS, "kvferry-digest", prepare_thread)
        self._flags: set[CancelFlag] = set()
        self._closed = False

    def start(self, work: Callable[[Digest], Result], done: Callable[[Result | KvferryError], None]) -> CancelFlag:
        """Run ``work`` and have ``done`` called on the event loop, with its result or the error that it raised.

        Raising the flag ends it as Cancelled, unless it has ended. How many may wait is the caller's to bound.

        Raises:
            NotReady: it was closed.
        """
        if self._closed:
            raise NotReady("the data plane is shutting down")
        flag = CancelFlag()
        self._flags.add(flag)

        def finish(result: Result | KvferryError) -> None:
            self._flags.discard(flag)
            done(result)

        def run() -> None:
            result: Result | KvferryError
            try:
                result = work(lambda region: self._digest(region, flag))
            except KvferryError as error:
                result = error
            except BaseException as defect:
                self._on_defect(defect)
                raise
            self._loop.call_soon_threadsafe(finish, result)

        self._threads.submit(run)
        return flag

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        self._closed = True
        for flag in self._flags:
            flag.raise_()
        await asyncio.to_thread(self._threads.shutdown)
