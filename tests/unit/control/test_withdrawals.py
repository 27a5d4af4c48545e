"""A request that is withdrawn has no effect any more, whether control has heard of it or not."""

from unittest.mock import Mock

from kvferry.core.reasons import Reason
from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.layout.v1.layout_pb2 import BlockList
from kvferry.rpc.reasons import reason_from_wire
from kvferry.transfer.v1 import transfer_pb2
from kvferry_control.config import LimitsSection
from kvferry_control.services.creation import TransferMaker
from kvferry_control.services.pull_session import PullSession
from tests.unit.control.one_rank import HANDLE, LAYOUT, Bench

CREATE = transfer_pb2.CreateTransferRequest(
    request_id="r",
    handle=HANDLE,
    destination_blocks=[BlockList(group="full", block_ids=[2])],
)


class Engine:
    """Streams of pulls at one control."""

    def __init__(self, limits: LimitsSection | None = None) -> None:
        self.bench = Bench(told=False, limits=limits or LimitsSection())
        worker = Mock(name="decode")
        worker.require_ready.return_value = LAYOUT
        worker.identity.incarnation = 1
        self.maker = TransferMaker(worker, self.bench.transfers, self.bench.limits, 10.0, 0)
        self.stream = self.new_stream()

    def new_stream(self) -> PullSession:
        """A stream that nothing was given to yet."""
        return PullSession(self.maker, self.bench.transfers)

    async def events(self) -> list[pb.PullEvent]:
        """What the stream says."""
        return await self.stream.outgoing.take() if len(self.stream.outgoing) else []

    async def create(self) -> list[pb.PullEvent]:
        """Ask for the transfer."""
        self.stream.handle(pb.PullRequest(commands=[pb.PullCommand(command_id=1, create=CREATE, answer_at_end=True)]))
        return await self.events()

    async def withdraw(self, request_id: str = "r") -> transfer_pb2.Transfer:
        """Withdraw it; the answer."""
        command = pb.PullCommand(command_id=2, withdraw=pb.WithdrawRequest(request_id=request_id))
        self.stream.handle(pb.PullRequest(commands=[command]))
        (event,) = await self.events()
        assert (2, "transfer") == (event.command_id, event.WhichOneof("event"))
        return event.transfer


async def test_a_request_that_never_came_makes_nothing_when_it_does() -> None:
    """It may be on its way on a stream that is broken by now."""
    engine = Engine()
    answer = await engine.withdraw()
    assert ("", "r", transfer_pb2.TRANSFER_STATE_CANCELLED, True) == (
        answer.name,
        answer.request_id,
        answer.state,
        answer.destination_settled,
    )
    (event,) = await engine.create()
    assert Reason.CANCELLED is reason_from_wire(event.refused.reason)
    assert [] == engine.bench.transfers.table.newest_first()


async def test_what_an_earlier_control_may_have_made_is_settled_with_its_reads() -> None:
    """The answer to the same question changes once no read is left behind."""
    engine = Engine()
    engine.bench.transfers.link_up(engine.bench.link, ["of-an-earlier-control"])
    assert not (await engine.withdraw()).destination_settled
    engine.bench.transfers.link_up(engine.bench.link, [])
    assert (await engine.withdraw()).destination_settled


async def test_what_was_made_on_an_earlier_stream_is_ended_and_its_end_told() -> None:
    """Not before its data plane has confirmed."""
    engine = Engine()
    assert [] == await engine.create()
    engine.bench.answer()
    (record,) = engine.bench.transfers.table.active()
    engine.stream.close()
    engine.stream = engine.new_stream()
    assert transfer_pb2.TRANSFER_STATE_SETTLING == (await engine.withdraw()).state
    engine.bench.finish(record, Reason.CANCELLED)
    (event,) = await engine.events()
    assert (0, record.name, transfer_pb2.TRANSFER_STATE_CANCELLED, True) == (
        event.command_id,
        event.transfer.name,
        event.transfer.state,
        event.transfer.destination_settled,
    )


async def test_what_has_succeeded_stays_so() -> None:
    """A withdrawal that comes too late tells that."""
    engine = Engine()
    await engine.create()
    engine.bench.answer()
    (record,) = engine.bench.transfers.table.active()
    engine.bench.finish(record)
    (told,) = await engine.events()
    assert (1, record.name) == (told.command_id, told.transfer.name)
    assert transfer_pb2.TRANSFER_STATE_SUCCEEDED == (await engine.withdraw()).state


async def test_as_many_withdrawals_are_remembered_as_transfers() -> None:
    """The oldest is forgotten first."""
    engine = Engine(LimitsSection(kept_transfers=2))
    for request_id in ("r", "s", "t"):
        await engine.withdraw(request_id)
    assert ["s", "t"] == list(engine.bench.transfers.table.withdrawn)


async def test_a_process_that_was_replaced_makes_nothing_more() -> None:
    """Its last commands may be read after the next process was answered."""
    engine = Engine()
    engine.stream = PullSession(engine.maker, engine.bench.transfers, lambda life: life == "old", "old")
    (event,) = await engine.create()
    assert Reason.CANCELLED is reason_from_wire(event.refused.reason)
