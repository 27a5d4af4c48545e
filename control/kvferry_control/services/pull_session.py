"""One stream on which an engine makes and cancels its pulls and hears of their ends."""

import asyncio

import structlog

from kvferry.core.errors import InternalError, InvalidArgument, KvferryError
from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.rpc.refusals import refusal_to_wire
from kvferry.rpc.streams import Outgoing
from kvferry_control.requests import id_of
from kvferry_control.services.creation import TransferMaker
from kvferry_control.transfers.manager import Transfers
from kvferry_control.transfers.record import TransferRecord

EVENTS_MAX = 16_384

_log = structlog.get_logger("kvferry.control.engine")


class PullSession:
    """Takes the commands of one stream in their order and puts the events into ``outgoing``."""

    def __init__(self, maker: TransferMaker, transfers: Transfers) -> None:
        self.outgoing: Outgoing[pb.PullEvent] = Outgoing(EVENTS_MAX)
        self._maker = maker
        self._transfers = transfers
        self._watched: set[str] = set()

    def handle(self, request: pb.PullRequest) -> None:
        """Take some commands; one that fails is refused by itself."""
        answers = [self._answer(command) for command in request.commands]
        # The negotiations go out first: what the engine waits for is the end, not the answer.
        asyncio.get_running_loop().call_soon(self._put, answers)

    def close(self) -> None:
        """Hear of no more ends."""
        for transfer in self._watched:
            self._transfers.unwatch(transfer, self._ended)
        self._watched.clear()

    def _answer(self, command: pb.PullCommand) -> pb.PullEvent:
        try:
            record = self._do(command)
            return pb.PullEvent(command_id=command.command_id, transfer=record.to_wire())
        except KvferryError as error:
            refusal = error
        except Exception as error:
            _log.exception("defect in a command about a pull")
            refusal = InternalError(f"{type(error).__name__} in {command.WhichOneof('command')}")
        return pb.PullEvent(command_id=command.command_id, refused=refusal_to_wire(refusal))

    def _do(self, command: pb.PullCommand) -> TransferRecord:
        match command.WhichOneof("command"):
            case "create":
                record = self._maker.make(command.create)
                self._watch(record)
            case "cancel":
                record = self._transfers.table.get(id_of("transfers", command.cancel.name))
                self._transfers.cancel(record)
            case "watch":
                record = self._transfers.table.get(id_of("transfers", command.watch.name))
                self._watch(record)
            case _:
                raise InvalidArgument.of_field("command", "unset", "an unknown command")
        return record

    def _watch(self, record: TransferRecord) -> None:
        if not record.life.state.terminal and record.id not in self._watched:
            self._watched.add(record.id)
            self._transfers.watch(record.id, self._ended)

    def _put(self, answers: list[pb.PullEvent]) -> None:
        for answer in answers:
            self.outgoing.put_or_end(answer)

    def _ended(self, record: TransferRecord) -> None:
        self._watched.discard(record.id)
        self.outgoing.put_or_end(pb.PullEvent(transfer=record.to_wire()))


def message_of(events: list[pb.PullEvent]) -> pb.PullResponse:
    """The message that carries events."""
    return pb.PullResponse(events=events)
