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

    Its methods may be called from any thread.
    """

    def __init__(self, executor: ReadExecutor, mailbox: Mailbox, on_defect: Callable[[BaseException], None]) -> None:
        """``on_defect`` is called, on this thread, with what ended the thread when nobody stopped it."""
        self._executor = executor
        self._mailbox = mailbox
        self._on_defect = on_defect
        self._stopping = False
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
        while self._take_commands(wait):
            moved_before = self._executor.progress_count
            for _ in range(_STEPS_PER_PAUSE):
                wait = self._executor.step(time.monotonic())
                if wait != 0.0 or self._mailbox:
                    break
            if wait == 0.0:
                pause = pacing.pause(self._executor.progress_count != moved_before, time.monotonic())
                # Also a pause of nothing matters: it lets the other threads have the interpreter.
                time.sleep(pause)
        self._executor.close(time.monotonic())

    def _take_commands(self, wait: float | None) -> bool:
        """Run the commands that came; sleeps up to ``wait`` for one. False once the thread shall stop."""
        commands = self._mailbox.take(wait)
        now = time.monotonic()
        for command in commands:
            command(now)
        return not self._stopping
