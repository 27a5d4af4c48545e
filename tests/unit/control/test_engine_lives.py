"""A new process of the engine takes its blocks to be free, and they are."""

import asyncio

import pytest

from kvferry.core.errors import InvalidArgument, NotReady
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry_control import engine_lives
from kvferry_control.engine_lives import EngineLives
from kvferry_control.transfers.machine import State
from kvferry_control.transfers.record import TransferRecord
from tests.unit.control.one_rank import Bench, state_of

OLD, NEW = b"old", b"new"


class Engine:
    """Processes of an engine that pull."""

    def __init__(self) -> None:
        self.bench = Bench(told=False)
        self.bench.link.gone = False
        self.bench.transfers.link_up(self.bench.link, [])
        self.lives = EngineLives(self.bench.transfers, [self.bench.link])
        self.lives.know("engine", OLD)

    def reading(self, life: bytes = OLD, request_id: str = "request") -> TransferRecord:
        """A transfer of a process that is being read."""
        record = self.bench.pull(request_id)
        record.engine_life = life.hex()
        self.bench.answer()
        return record

    async def begin(self, tasks: asyncio.TaskGroup) -> "asyncio.Task[None]":
        """The new process comes; whoever is to be told has been."""
        beginning = tasks.create_task(self.lives.begin("other", NEW))
        await asyncio.sleep(0)
        return beginning


async def test_it_waits_until_what_the_others_pulled_has_ended() -> None:
    """Their reads are cancelled, and nothing is said before they are over."""
    engine = Engine()
    record = engine.reading()
    async with asyncio.TaskGroup() as tasks:
        beginning = await engine.begin(tasks)
        assert record.id == engine.bench.link.post.call_args.args[0].cancel_read.transfer
        await asyncio.sleep(0)
        assert not beginning.done()
        engine.bench.finish(record, Reason.CANCELLED)
    assert (State.CANCELLED, True) == (state_of(record), record.life.settled)


async def test_what_processes_pull_that_are_there_goes_on() -> None:
    """There may be several; one whose last stream has ended is gone."""
    engine = Engine()
    record = engine.reading()
    for _ in range(2):
        engine.lives.connected(OLD.hex())
    engine.lives.disconnected(OLD.hex())
    await engine.lives.begin("other", NEW)
    assert State.READING is state_of(record)
    engine.lives.disconnected(OLD.hex())
    async with asyncio.TaskGroup() as tasks:
        await engine.begin(tasks)
        engine.bench.finish(record, Reason.CANCELLED)
    assert State.CANCELLED is state_of(record)


async def test_of_one_engine_only_the_newest_process_is_there() -> None:
    """A process that was killed may still seem connected, and what it has asked for may still be on its way."""
    engine = Engine()
    record = engine.reading()
    engine.lives.connected(OLD.hex())
    assert not engine.lives.is_gone(OLD.hex())
    async with asyncio.TaskGroup() as tasks:
        beginning = tasks.create_task(engine.lives.begin("engine", NEW))
        await asyncio.sleep(0)
        assert not beginning.done()
        engine.bench.finish(record, Reason.CANCELLED)
    assert State.CANCELLED is state_of(record)
    assert (True, False) == (engine.lives.is_gone(OLD.hex()), engine.lives.is_gone(NEW.hex()))


async def test_it_is_told_to_come_again_while_a_read_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns which; the same for reads whose transfers an earlier control knew."""
    monkeypatch.setattr(engine_lives, "EARLIER_LIVES_S", 0.05)
    engine = Engine()
    record = engine.reading()
    with pytest.raises(NotReady, match=record.name):
        await engine.lives.begin("other", NEW)
    engine.bench.finish(record, Reason.CANCELLED)
    engine.bench.transfers.link_up(engine.bench.link, ["unknown"])
    with pytest.raises(NotReady, match="an earlier control on rank 0"):
        await engine.lives.begin("other", NEW)
    engine.bench.transfers.read_finished(0, dp.ReadFinished(transfer="unknown"))
    await engine.lives.begin("other", NEW)


async def test_a_data_plane_that_is_gone_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process attaches another pool: it does not have to wait until that is there."""
    monkeypatch.setattr(engine_lives, "EARLIER_LIVES_S", 0.05)
    engine = Engine()
    record = engine.reading()
    engine.bench.transfers.link_down(0)
    assert not record.life.settled
    with pytest.raises(NotReady):
        await engine.lives.begin("other", NEW)
    engine.bench.link.gone = True
    await engine.lives.begin("other", NEW)


async def test_the_same_request_means_something_new() -> None:
    """Also where the old one has succeeded: its bytes are not in blocks that the process has just taken."""
    engine = Engine()
    record = engine.reading()
    engine.bench.finish(record)
    table = engine.bench.transfers.table
    assert table.is_known("request")
    await engine.lives.begin("other", NEW)
    assert not table.is_known("request")
    assert record is table.get(record.id)


async def test_a_life_is_bounded() -> None:
    """It is kept with every transfer."""
    with pytest.raises(InvalidArgument, match="life"):
        await Engine().lives.begin("engine", bytes(engine_lives.LIFE_BYTES_MAX + 1))
