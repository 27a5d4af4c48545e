"""Negotiations with a source that misbehaves on purpose."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from kvferry.core.errors import ChecksumsAbsent, DeadlineExceeded, LeaseEnded, PeerError, ResourceExhausted
from kvferry.core.reasons import Reason
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry.worker.v1 import worker_pb2
from kvferry_control.peers import session
from kvferry_control.peers.source import Source
from kvferry_control.peers.sources import Sources
from kvferry_control.records import PROTOCOL_VERSION, WorkerRecord
from tests.contract.negotiation.asked import negotiated
from tests.contract.negotiation.fake_source import FakeSource
from tests.contract.sdk.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def record_of(source: FakeSource) -> WorkerRecord:
    """The source as the cluster knows it."""
    return WorkerRecord(
        name="prefill-0",
        role=worker_pb2.ROLE_PREFILL,
        state=worker_pb2.WORKER_STATE_READY,
        endpoint=source.endpoint,
        incarnation=7,
        instance_id=b"i" * 16,
        protocol_version=PROTOCOL_VERSION,
        layout=None,
        ranks=(),
    )


class Asker:
    """The control of a decode worker, as far as it negotiates."""

    def __init__(self, sources: Sources, tasks: asyncio.TaskGroup) -> None:
        self.sources = sources
        self.tasks = tasks

    async def ask(self, source: FakeSource, transfer: str, timeout_s: float = 10.0) -> int:
        """Negotiate; the number in the answer, which is the one in the transfer's name."""
        deadline = time.monotonic() + timeout_s
        _, answer = await negotiated(self.sources, record_of(source), transfer, deadline)
        return answer.token_count

    async def known(self, source: FakeSource) -> Source:
        """The source after a negotiation."""
        known, _ = await negotiated(self.sources, record_of(source), "t-1", time.monotonic() + 10.0)
        return known

    async def checksums(self, known: Source, timeout_s: float = 10.0) -> dict[int, pb.RankChecksums]:
        """Ask for checksums of what was negotiated."""
        deadline = time.monotonic() + timeout_s
        return await self.sources.checksums(known, "t-1", b"handle", pb.ChecksumScope(every=1), deadline)

    def conclude(self, source: FakeSource, transfer: str) -> None:
        """Say that a transfer is over."""
        self.sources.conclude(record_of(source), transfer, b"handle", succeeded=True)


@pytest_asyncio.fixture(loop_scope="module")
async def source() -> AsyncIterator[FakeSource]:
    """A source that listens."""
    fake = await FakeSource().start()
    yield fake
    await fake.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def asker() -> AsyncIterator[Asker]:
    """A control without data planes."""
    async with asyncio.TaskGroup() as tasks:

        def spawn(work: Any) -> asyncio.Task[None]:
            return tasks.create_task(work)

        sources = Sources("decode-0", [], spawn)
        yield Asker(sources, tasks)
        await sources.close()


async def test_many_at_once_get_their_own_answers_in_few_messages(source: FakeSource, asker: Asker) -> None:
    """Concurrent negotiations share one session and its messages, and each gets its own answer."""
    names = [f"t-{number}" for number in range(1, 501)]
    answers = await asyncio.gather(*(asker.ask(source, name) for name in names))
    assert list(range(1, 501)) == answers
    assert 1 == source.sessions
    assert [("negotiate", name) for name in names] == source.calls
    assert len(source.messages) < len(names) / 4


async def test_a_conclusion_follows_its_negotiation(source: FakeSource, asker: Asker) -> None:
    """A transfer that is given up while its negotiation waits is concluded after it, never before."""
    source.silent = True
    waiting = asker.tasks.create_task(asker.ask(source, "t-1"))
    await until(lambda: source.calls == [("negotiate", "t-1")], "asked")
    waiting.cancel()
    second = asker.tasks.create_task(asker.ask(source, "t-2"))
    await asyncio.sleep(0)
    second.cancel()
    asker.conclude(source, "t-1")
    asker.conclude(source, "t-2")
    await until(lambda: len(source.calls) == 4, "all calls")
    for transfer in ("t-1", "t-2"):
        assert ["negotiate", "conclude"] == [kind for kind, named in source.calls if named == transfer]


async def test_a_late_answer_disturbs_nobody(source: FakeSource, asker: Asker) -> None:
    """The answer to a negotiation that was cancelled is thrown away, and the session goes on."""
    go_on = asyncio.Event()
    source.before = go_on.wait  # type: ignore[assignment]
    waiting = asker.tasks.create_task(asker.ask(source, "t-1"))
    await until(lambda: source.calls == [("negotiate", "t-1")], "asked")
    waiting.cancel()
    go_on.set()
    assert 2 == await asker.ask(source, "t-2")
    assert 1 == source.sessions


async def test_a_refusal_keeps_reason_and_values(source: FakeSource, asker: Asker) -> None:
    """A refusal inside a session raises the same typed error as one of a unary call."""
    source.refusal = LeaseEnded.of_field("publication", "publications/x", "has ended")
    with pytest.raises(LeaseEnded) as caught:
        await asker.ask(source, "t-1")
    assert {"field": "publication", "value": "publications/x"} == caught.value.metadata
    source.refusal = None
    assert 2 == await asker.ask(source, "t-2")


async def test_a_break_is_asked_again(source: FakeSource, asker: Asker) -> None:
    """Negotiations under way when the session breaks are asked again on a new one, under the same transfer."""
    source.silent = True
    waiting = [asker.tasks.create_task(asker.ask(source, f"t-{number}")) for number in (1, 2)]
    await until(lambda: len(source.calls) == 2, "both asked")
    source.silent = False
    source.break_sessions()
    assert [1, 2] == [await asked for asked in waiting]
    assert 2 == source.sessions


async def test_a_dead_source_is_unreachable(source: FakeSource, asker: Asker) -> None:
    """A source that dies while it is asked, and does not come back, is PEER_UNREACHABLE with its name and address."""
    source.silent = True
    waiting = asker.tasks.create_task(raised(asker.ask(source, "t-1")))
    await until(lambda: len(source.calls) == 1, "asked")
    await source.kill()
    error = await waiting
    assert isinstance(error, PeerError)
    assert Reason.PEER_UNREACHABLE is error.reason
    assert {"worker": "prefill-0", "endpoint": source.endpoint} == error.metadata


async def test_a_silent_source_ends_at_the_deadline(source: FakeSource, asker: Asker) -> None:
    """A source that takes the question and never answers is DEADLINE_EXCEEDED before the transfer's deadline."""
    source.silent = True
    deadline = time.monotonic() + 0.3
    with pytest.raises(DeadlineExceeded) as caught:
        await asker.ask(source, "t-1", timeout_s=0.3)
    assert time.monotonic() < deadline + 1.0
    assert "prefill-0" in caught.value.message


async def test_too_many_are_refused_at_once(source: FakeSource, asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound on negotiations under way, the next is RESOURCE_EXHAUSTED without being sent."""
    monkeypatch.setattr(session, "CALLS_MAX", 2)
    source.silent = True
    waiting = [asker.tasks.create_task(asker.ask(source, f"t-{number}")) for number in (1, 2)]
    await until(lambda: len(source.calls) == 2, "both asked")
    with pytest.raises(ResourceExhausted):
        await asker.ask(source, "t-3")
    for asked in waiting:
        asked.cancel()


async def test_conclusions_outlive_a_break(source: FakeSource, asker: Asker) -> None:
    """A conclusion that was not acknowledged when the session broke is sent again, on a session of its own accord."""
    source.acknowledges = False
    asker.conclude(source, "t-1")
    await until(lambda: source.calls == [("conclude", "t-1")], "concluded")
    source.acknowledges = True
    source.break_sessions()
    await until(lambda: source.calls == [("conclude", "t-1")] * 2, "concluded again")
    asker.conclude(source, "t-2")
    await until(lambda: source.calls[2:] == [("conclude", "t-2")], "the next one alone")


async def test_a_source_without_sessions_is_asked_by_unary_calls(
    asker: Asker, capsys: pytest.CaptureFixture[str]
) -> None:
    """UNIMPLEMENTED makes negotiations and conclusions go by unary calls from then on, and the log says so once."""
    plain = await FakeSource(serves_sessions=False).start()
    try:
        assert [1, 2] == list(await asyncio.gather(asker.ask(plain, "t-1"), asker.ask(plain, "t-2")))
        asker.conclude(plain, "t-1")
        await until(lambda: "conclude t-1" in plain.unary, "concluded")
        assert 3 == await asker.ask(plain, "t-3")
    finally:
        await plain.kill()
    assert 1 == capsys.readouterr().out.count("serves no sessions")


async def test_checksums_are_asked_for_beside_the_session(source: FakeSource, asker: Asker) -> None:
    """Checksums come by rank, a refusal keeps its reason, and no time left is a deadline."""
    known = await asker.known(source)
    assert [3] == list(await asker.checksums(known))
    source.refusal = LeaseEnded("has ended")
    with pytest.raises(LeaseEnded):
        await asker.checksums(known)
    with pytest.raises(DeadlineExceeded):
        await asker.checksums(known, timeout_s=0.0)


async def test_a_source_that_knows_of_no_checksums_is_refused(asker: Asker) -> None:
    """UNIMPLEMENTED means that the source has no checksums."""
    old = await FakeSource(serves_sessions=False).start()
    try:
        known = await asker.known(old)
        with pytest.raises(ChecksumsAbsent):
            await asker.checksums(known)
    finally:
        await old.kill()


async def raised(asking: Any) -> BaseException:
    """What ``asking`` raises."""
    try:
        await asking
    except PeerError as error:
        return error
    raise AssertionError("nothing was raised")
