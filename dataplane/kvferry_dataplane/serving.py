"""The serving agent: makes this pool readable, and makes progress while readers are about to come.

A one-sided read needs the target's progress on some transports (tcp emulates it) and for connecting on all.
"""

import threading
import time
from collections.abc import Callable

import structlog

from kvferry.core.errors import KvferryError
from kvferry_dataplane.thread_names import name_thread
from kvferry_dataplane.transports.memory import Region
from kvferry_dataplane.transports.transport import TransportAgent, TransportLibrary

_log = structlog.get_logger("kvferry.dataplane.serving")

_POLLS_PER_BURST = 4
_BUSY_FACTOR = 4.0
"""A burst that takes this much longer than an idle one has moved bytes: the backend itself does not say."""
_NEAR_PAUSE_SECONDS = 50e-6
_FAR_PAUSE_SECONDS = 500e-6
_NEAR_SECONDS = 0.02
EXPECT_SECONDS_MAX = 24 * 3600.0


class ServingThread:
    """Owns the agent that peers read from. Methods may be called from any thread."""

    def __init__(
        self, library: TransportLibrary, name: str, regions: list[Region], on_defect: Callable[[BaseException], None]
    ) -> None:
        self._library = library
        self._name = name
        self._regions = regions
        self._on_defect = on_defect
        self._changed = threading.Condition()
        self._expected_until = 0.0
        self._stopping = False
        self._ready = threading.Event()
        self._start_error: KvferryError | None = None
        self._metadata = b""
        self.turn_count = 0
        """Bursts so far."""
        self._thread = threading.Thread(target=self._run, name="kvferry-serving", daemon=True)

    @property
    def agent_name(self) -> str:
        """Name under which peers know the agent."""
        return self._name

    @property
    def metadata(self) -> bytes:
        """What peers need to read from the agent."""
        return self._metadata

    @property
    def expecting(self) -> bool:
        """Whether readers are expected, so that the thread has to make progress."""
        return time.monotonic() < self._expected_until

    def start(self, before: Callable[[], None]) -> None:
        """Start the thread and wait until the agent is there. ``before`` runs on it first.

        Raises:
            KvferryError: the agent cannot be made or the memory cannot be registered.
        """
        self._before = before
        self._thread.start()
        self._ready.wait()
        if self._start_error is not None:
            raise self._start_error

    def expect(self, seconds: float) -> None:
        """Make progress for so long from now; replaces what was said before."""
        until = time.monotonic() + min(max(seconds, 0.0), EXPECT_SECONDS_MAX)
        with self._changed:
            self._expected_until = until
            self._changed.notify()

    def stop(self) -> None:
        """Destroy the agent and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        name_thread(self._thread.name)
        try:
            self._before()
            agent = self._library.make_agent(self._name)
            for region in self._regions:
                agent.register(region)
            self._metadata = agent.metadata()
        except KvferryError as error:
            self._start_error = error
            return
        finally:
            self._ready.set()
        try:
            self._loop(agent)
            agent.close()
        except BaseException as error:
            self._on_defect(error)
            raise

    def _loop(self, agent: TransportAgent) -> None:
        idle_seconds = float("inf")
        busy_at = time.monotonic()
        while self._wait_until_expected():
            started = time.monotonic()
            self._burst(agent)
            self.turn_count += 1
            ended = time.monotonic()
            idle_seconds = min(idle_seconds, ended - started)
            if ended - started > _BUSY_FACTOR * idle_seconds:
                busy_at = ended
                time.sleep(0)
            else:
                time.sleep(_NEAR_PAUSE_SECONDS if ended - busy_at < _NEAR_SECONDS else _FAR_PAUSE_SECONDS)

    def _burst(self, agent: TransportAgent) -> None:
        for _ in range(_POLLS_PER_BURST):
            try:
                agent.progress()
            except KvferryError as error:
                # A reader went away. The others are still to be served.
                _log.warning("progress failed", reason=error.reason, message=error.message)
                return

    def _wait_until_expected(self) -> bool:
        """Sleep until readers are expected. False once the thread shall stop."""
        if not self._stopping and time.monotonic() < self._expected_until:
            return True
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or time.monotonic() < self._expected_until)
        return not self._stopping
