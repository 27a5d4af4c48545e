"""Small reads of mapped memory, done by who asks for them while nothing else is under way."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from kvferry.core.errors import KvferryError, PeerError, TransportFailed
from kvferry.core.reasons import Reason
from kvferry_dataplane.paths import Path, Route
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.reads.executor import ReadExecutor
from kvferry_dataplane.reads.mailbox import Mailbox
from kvferry_dataplane.reads.request import ReadBounds, ReadOutcome, ReadPart, ReadRequest
from kvferry_dataplane.reads.thread import ReadThread
from tests.unit.dataplane.fakes import NIXL, WORD, Bench, FakeRouting, Network

MAPPED = Route(Path.LOCAL, "memory", "mapped")
ON_DEVICE = Route(Path.LOCAL, "cuda", "mapped")
WAIT_SECONDS = 10.0


@dataclass
class Copies:
    """An agent of mapped memory whose copies are done once they were waited for, unless they are slow."""

    slow: bool = False
    refuses: bool = False
    dead: bool = False
    found: int = WORD
    cell_count: int = 2
    wakes: bool = False
    waited: list[float] = field(default_factory=list)
    awaited: list[bool] = field(default_factory=list)
    stopped: bool = False

    def connect(self, peer: Peer) -> None:
        """Nothing to do."""

    def disconnect(self, peer: Peer) -> None:
        """Nothing to do."""

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int, *, awaited: bool = False) -> int:
        """Copy."""
        self.awaited.append(awaited)
        if self.refuses:
            raise TransportFailed("no copy today")
        return 1

    def read_word(self, source: ReadPart, cell: int) -> int:
        """Read a word, unless its owner has died."""
        if self.dead:
            raise PeerError("dead", reason=Reason.PEER_LOST)
        return 0

    def word(self, cell: int) -> int:
        """What was read."""
        return self.found

    def is_done(self, handle: int) -> bool:
        """Whether a copy has ended; words have."""
        return handle == 0 or self.stopped or not self.slow

    def wait(self, handle: int, seconds: float) -> None:
        """Wait for a copy."""
        self.waited.append(seconds)

    def device_seconds(self, handle: int) -> float:
        """No device."""
        return 0.0

    def stop(self, handle: int) -> bool:
        """End a copy early."""
        self.stopped = True
        return True

    def close(self) -> None:
        """Nothing to close."""


def bench_of(agent: Copies, route: Route | None = MAPPED) -> Bench:
    """An executor with an agent, from which ``source`` is read by a route."""
    return Bench(routing=FakeRouting({"source": route}), lasting={Path.LOCAL: agent}, bounds=ReadBounds())


def timed(transfer: str) -> ReadRequest:
    """A read on the real clock."""
    now = time.monotonic()
    return Bench(now=now).request(transfer, "source", deadline=now + WAIT_SECONDS)


def failure_of(bench: Bench, transfer: str) -> KvferryError:
    """Why a read failed."""
    failure = bench.outcomes[transfer].failure
    assert failure is not None
    return failure


def test_it_is_over_when_the_call_returns() -> None:
    """Copied, waited for, verified and told, without a step; nothing is left of it."""
    agent = Copies()
    bench = bench_of(agent)
    assert bench.executor.read_at_once(bench.request("t", "source", batches=3), 0.0)
    outcome = bench.outcomes["t"]
    assert outcome.failure is None
    assert (300, 3) == (outcome.received_bytes, outcome.descriptor_count)
    assert [True] == agent.awaited
    assert [pytest.approx(ReadBounds().at_once_seconds)] == agent.waited
    assert bench.executor.is_free
    assert bench.run() is None


def test_what_is_to_come_from_nowhere_is_verified_all_the_same() -> None:
    """A read without bytes asks for its lease word alone."""
    agent = Copies(found=0)
    bench = bench_of(agent)
    assert bench.executor.read_at_once(bench.request("t", "source", batches=0), 0.0)
    assert not agent.awaited
    assert failure_of(bench, "t").reason is Reason.FENCED


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        (Copies(found=0), Reason.FENCED),
        (Copies(dead=True), Reason.PEER_LOST),
        (Copies(refuses=True), Reason.TRANSPORT_FAILED),
    ],
)
def test_failures_are_those_of_any_read(agent: Copies, reason: Reason) -> None:
    """A lease that ended, a source that died, and an agent that refuses are told at once, and the next read is fine."""
    bench = bench_of(agent)
    assert bench.executor.read_at_once(bench.request("t", "source"), 0.0)
    assert failure_of(bench, "t").reason is reason
    agent.found, agent.dead, agent.refuses = WORD, False, False
    assert bench.executor.read_at_once(bench.request("next", "source"), 0.0)
    assert bench.outcomes["next"].failure is None


@pytest.mark.parametrize(
    ("route", "batches"),
    [
        (NIXL, 1),
        (None, 1),
        (MAPPED, ReadBounds().at_once_bytes_max // 100 + 1),
        (ON_DEVICE, ReadBounds().at_once_device_bytes_max // 100 + 1),
    ],
)
def test_others_are_not_begun(route: Route | None, batches: int) -> None:
    """What a transport reads, what is not mapped yet, and what is large is left to the steps."""
    bench = bench_of(Copies(), route)
    assert not bench.executor.read_at_once(bench.request("t", "source", batches=batches), 0.0)
    assert not bench.outcomes
    assert bench.executor.is_free


def test_a_device_copies_more_at_once() -> None:
    """Where a device copies, more bytes take no longer."""
    bench = bench_of(Copies(), ON_DEVICE)
    batches = ReadBounds().at_once_bytes_max // 100 + 1
    assert bench.executor.read_at_once(bench.request("t", "source", batches=batches), 0.0)
    assert bench.outcomes["t"].failure is None


def test_nobody_is_overtaken() -> None:
    """While a read is queued or active, another one is not begun."""
    agent = Copies(slow=True)
    bench = bench_of(agent)
    bench.submit("first", "source")
    assert not bench.executor.read_at_once(bench.request("t", "source"), 0.0)
    bench.run()
    assert not bench.executor.read_at_once(bench.request("t", "source"), 0.0)
    agent.slow = False
    bench.run()
    assert ["first"] == list(bench.outcomes)


def test_a_peer_that_cannot_be_routed_is_told_by_a_step() -> None:
    """The error of a route is the step's to tell."""
    bench = bench_of(Copies())
    bench.routing.errors["source"] = PeerError("dead", reason=Reason.PEER_LOST)
    request = bench.request("t", "source")
    assert not bench.executor.read_at_once(request, 0.0)
    bench.executor.submit(request)
    bench.run()
    assert failure_of(bench, "t").reason is Reason.PEER_LOST


def test_what_takes_longer_goes_on() -> None:
    """A copy that is not over in time is an active read as any other: it has its deadline, and ends in a step."""
    agent = Copies(slow=True)
    bench = bench_of(agent)
    assert bench.executor.read_at_once(bench.request("slow", "source", deadline=5.0), 0.0)
    assert not bench.executor.is_free
    agent.slow = False
    bench.run()
    assert bench.outcomes["slow"].failure is None
    agent.slow = True
    assert bench.executor.read_at_once(bench.request("late", "source", deadline=5.0), bench.now)
    bench.run(6.0)
    assert failure_of(bench, "late").reason is Reason.DEADLINE_EXCEEDED


@dataclass
class Told:
    """Outcomes, and the thread that told each."""

    outcomes: dict[str, tuple[ReadOutcome, int]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, outcome: ReadOutcome) -> None:
        with self.changed:
            self.outcomes[outcome.transfer] = outcome, threading.get_ident()
            self.changed.notify()

    def thread_of(self, transfer: str) -> int:
        """Who told of the success of a read, once it is told."""
        with self.changed:
            assert self.changed.wait_for(lambda: transfer in self.outcomes, WAIT_SECONDS)
        outcome, thread = self.outcomes[transfer]
        assert outcome.failure is None
        return thread


@contextmanager
def running(agent: Copies, told: Told) -> Iterator[ReadThread]:
    """A reads' thread over an agent of mapped memory."""
    mailbox = Mailbox()
    executor = ReadExecutor(
        Network().make_agent, told, FakeRouting({"source": MAPPED}), {Path.LOCAL: agent}, ReadBounds()
    )
    defects: list[BaseException] = []
    thread = ReadThread(executor, mailbox, defects.append)
    thread.start(lambda: None)
    try:
        yield thread
    finally:
        thread.stop()
        mailbox.close()
        assert not defects


def test_who_asks_reads_where_the_thread_rests() -> None:
    """A small read is over on the caller's thread; one that takes longer ends on the reads' thread."""
    agent, told = Copies(), Told()
    with running(agent, told) as reads:
        # Until the thread sleeps, it may hold the executor.
        answered = threading.Event()
        reads.ping(answered.set)
        assert answered.wait(WAIT_SECONDS)
        agent.slow = True
        reads.read(timed("slow"))
        agent.slow = False
        assert told.thread_of("slow") != threading.get_ident()


def test_what_was_asked_before_comes_first() -> None:
    """While the thread is at something, or something waits for it, a read is queued behind that."""
    agent, told = Copies(), Told()
    with running(agent, told) as reads:
        holds, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            holds.set()
            assert let_go.wait(WAIT_SECONDS)

        reads.ping(hold)
        assert holds.wait(WAIT_SECONDS)
        reads.read(timed("t"))
        assert not told.outcomes
        let_go.set()
        assert told.thread_of("t") != threading.get_ident()


def test_a_read_at_once_is_told_by_the_caller() -> None:
    """Asked again until the thread sleeps, a small read is done by the caller."""
    agent, told = Copies(), Told()
    with running(agent, told) as reads:
        for number in range(1000):
            reads.read(timed(f"t{number}"))
            if told.thread_of(f"t{number}") == threading.get_ident():
                return
    pytest.fail("the thread did all of them")
