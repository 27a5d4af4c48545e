"""One stream on which an engine makes and cancels its pulls and hears of their ends."""

from collections.abc import Callable

import structlog

from kvferry.core.errors import Cancelled, InternalError, InvalidArgument, KvferryError
from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.rpc.refusals import refusal_to_wire
from kvferry.rpc.streams import Outgoing
from kvferry.transfer.v1.transfer_pb2 import Transfer
from kvferry_control.requests import id_of
from kvferry_control.services.creation import TransferMaker
from kvferry_control.transfers.manager import Transfers
from kvferry_control.transfers.record import TransferRecord

EVENTS_MAX = 16_384

Answer = TransferRecord | Transfer | KvferryError
"""To a command: the transfer that it is about, one that was never made, or why it is refused."""

_log = structlog.get_logger("kvferry.control.engine")


class PullSession:
    """Takes the commands of one stream in their order and puts the events into ``outgoing``.

    ``engine_life`` is the process whose stream it is, in hexadecimal; ``is_gone`` tells of another that has come since.
    """

    def __init__(
        self,
        maker: TransferMaker,
        transfers: Transfers,
        is_gone: Callable[[str], bool] = lambda _life: False,
        engine_life: str = "",
    ) -> None:
        self.outgoing: Outgoing[pb.PullEvent] = Outgoing(EVENTS_MAX)
        self._maker = maker
        self._transfers = transfers
        self._is_gone = is_gone
        self._engine_life = engine_life
        self._watched: dict[str, list[int]] = {}
        """By transfer: the commands that its end answers; none if it is told unasked."""

    def handle(self, request: pb.PullRequest) -> None:
        """Take some commands; one that fails is refused by itself."""
        # The negotiations go out first: what the engine waits for is the end, not the answer.
        self._answer_all([(command, self._done(command)) for command in request.commands])

    def close(self) -> None:
        """Hear of no more ends."""
        for transfer in self._watched:
            self._transfers.unwatch(transfer, self._ended)
        self._watched.clear()

    def _done(self, command: pb.PullCommand) -> Answer:
        try:
            return self._do(command)
        except KvferryError as error:
            return error
        except Exception as error:
            _log.exception("defect in a command about a pull")
            return InternalError(f"{type(error).__name__} in {command.WhichOneof('command')}")

    def _do(self, command: pb.PullCommand) -> TransferRecord | Transfer:
        match command.WhichOneof("command"):
            case "create":
                if self._is_gone(self._engine_life):
                    # What lies in its connection is of a process that was killed, or should not be there.
                    raise Cancelled("another process of this engine has declared itself since")
                record = self._maker.make(command.create, self._engine_life)
                self._watch(record, command.command_id if command.answer_at_end else None)
            case "cancel":
                record = self._transfers.table.get(id_of("transfers", command.cancel.name))
                self._transfers.cancel(record)
            case "watch":
                record = self._transfers.table.get(id_of("transfers", command.watch.name))
                self._watch(record, None)
            case "withdraw":
                withdrawn = self._maker.withdraw(command.withdraw.request_id)
                if isinstance(withdrawn, Transfer):
                    return withdrawn
                record = withdrawn
                self._watch(record, None)
            case _:
                raise InvalidArgument.of_field("command", "unset", "an unknown command")
        return record

    def _watch(self, record: TransferRecord, answers: int | None) -> None:
        if record.life.state.terminal:
            return
        if record.id not in self._watched:
            self._watched[record.id] = []
            self._transfers.watch(record, self._ended)
        if answers is not None:
            self._watched[record.id].append(answers)

    def _answer_all(self, made: list[tuple[pb.PullCommand, Answer]]) -> None:
        for command, result in made:
            if isinstance(result, KvferryError):
                refused = refusal_to_wire(result)
                self.outgoing.put_or_end(pb.PullEvent(command_id=command.command_id, refused=refused))
            elif isinstance(result, Transfer):
                self.outgoing.put_or_end(pb.PullEvent(command_id=command.command_id, transfer=result))
            elif not command.answer_at_end or result.life.state.terminal:
                self._tell(command.command_id, result)

    def _ended(self, record: TransferRecord) -> None:
        for command_id in self._watched.pop(record.id) or [0]:
            self._tell(command_id, record)

    def _tell(self, command_id: int, record: TransferRecord) -> None:
        event = pb.PullEvent(command_id=command_id)
        record.write_to(event.transfer)
        self.outgoing.put_or_end(event)


def message_of(events: list[pb.PullEvent]) -> pb.PullResponse:
    """The message that carries events."""
    return pb.PullResponse(events=events)
