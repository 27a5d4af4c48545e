"""The thread that owns the executor and its agents."""

import threading
import time
from collections.abc import Callable

import structlog

from kvferry.core.errors import KvferryError
from kvferry_dataplane.pacing import Pacing
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.executor import ReadExecutor
from kvferry_dataplane.reads.mailbox import Mailbox
from kvferry_dataplane.reads.request import ReadRequest
from kvferry_dataplane.thread_names import name_thread

_log = structlog.get_logger("kvferry.dataplane.reads")
_STEPS_PER_PAUSE = 16


class ReadThread:
    """Runs a :class:`ReadExecutor`: polls closely while NIXL reads are in flight, and sleeps otherwise.

    Small reads of mapped memory are done by who asks for them, while nothing else is under way.

    Its methods may be called from any thread.
    """

    def __init__(self, executor: ReadExecutor, mailbox: Mailbox, on_defect: Callable[[BaseException], None]) -> None:
        """``on_defect`` is called, on this thread, with what ended the thread when nobody stopped it."""
        self._executor = executor
        self._mailbox = mailbox
        self._on_defect = on_defect
        self._stopping = False
        self._turn = threading.Lock()
        """Held by whoever uses the executor."""
        self._ready = threading.Event()
        self._start_error: KvferryError | None = None
        self._thread = threading.Thread(target=self._run, name="kvferry-reads", daemon=True)

    def start(self, before: Callable[[], None]) -> None:
        """Start the thread and wait until its first agent is made. ``before`` runs on it first.

        Raises:
            KvferryError: the agent cannot be made.
        """
        self._before = before
        self._thread.start()
        self._ready.wait()
        if self._start_error is not None:
            raise self._start_error

    def stop(self) -> None:
        """End every read, destroy the agents and end the thread."""
        self._mailbox.put(self._stop)
        self._thread.join()

    def read(self, request: ReadRequest) -> None:
        """Read at once where nothing stands before it and it takes but a moment, else queue it.

        A small read is over sooner than another thread has woken up. The caller is held up for
        ``ReadBounds.at_once_seconds`` and the work of one read.
        """
        if not self._read_at_once(request):
            self.submit(request)

    def submit(self, request: ReadRequest) -> None:
        """Queue a read."""
        self._mailbox.put(lambda _: self._executor.submit(request))

    def cancel(self, transfer: str) -> None:
        """End a read early."""
        self._mailbox.put(lambda now: self._executor.cancel(transfer, now))

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        self._mailbox.put(lambda _: self._connect(peer))

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self._mailbox.put(lambda now: self._executor.disconnect(peer, now))

    def ping(self, answer: Callable[[], None]) -> None:
        """Have ``answer`` called on the thread."""
        self._mailbox.put(lambda _: answer())

    def _read_at_once(self, request: ReadRequest) -> bool:
        if not self._turn.acquire(blocking=False):
            return False
        try:
            # What was put into the mailbox before comes first: it may be about the same peer.
            if self._stopping or self._mailbox:
                return False
            begun = self._executor.read_at_once(request, time.monotonic())
            if begun and not self._executor.is_free:
                self._mailbox.put(_look)
        except BaseException as error:
            self._on_defect(error)
            raise
        finally:
            self._turn.release()
        return begun

    def _stop(self, _: float) -> None:
        self._stopping = True

    def _connect(self, peer: Peer) -> None:
        try:
            self._executor.connect(peer)
        except KvferryError as error:
            # Not lost: every read of this peer tries again and fails with the same error.
            _log.warning("peer refused by the backend", peer=peer.name, reason=error.reason, message=error.message)

    def _run(self) -> None:
        name_thread(self._thread.name)
        try:
            self._before()
            self._executor.prepare()
        except KvferryError as error:
            self._start_error = error
            return
        finally:
            self._ready.set()
        try:
            self._loop()
        except BaseException as error:
            self._on_defect(error)
            raise

    def _loop(self) -> None:
        pacing = Pacing()
        wait: float | None = None
        while not self._stopping:
            self._mailbox.wait(wait)
            with self._turn:
                moved_before = self._executor.progress_count
                wait = self._take_turn()
            if wait == 0.0:
                pause = pacing.pause(self._executor.progress_count != moved_before, time.monotonic())
                # Also a pause of nothing matters: it lets the other threads have the interpreter.
                time.sleep(pause)
        self._executor.close(time.monotonic())

    def _take_turn(self) -> float | None:
        """Run the commands that came and do what can be done at once; returns as :meth:`ReadExecutor.step`."""
        wait: float | None = None
        now = time.monotonic()
        for command in self._mailbox.take():
            command(now)
        for _ in range(_STEPS_PER_PAUSE):
            if self._stopping:
                break
            wait = self._executor.step(time.monotonic())
            if wait != 0.0 or self._mailbox:
                break
        return wait


def _look(_: float) -> None:
    """Have the thread look at what was begun on another one."""
