"""Commands about pulls, and their answers, over one stream that is made anew with every session with control.

A command is sent again on the next stream until it is answered: all of them are idempotent.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from grpc import aio

from kvferry.core.errors import DeadlineExceeded, KvferryError, NotReady, ResourceExhausted
from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.rpc.lanes import connect_lane
from kvferry.rpc.refusals import refusal_from_wire
from kvferry.rpc.streams import Outgoing, carry_by, write_batches
from kvferry.sdk.calls import RETRY_PAUSE_S, mark_outcome_unknown
from kvferry.sdk.timeouts import shorten
from kvferry.transfer.v1.transfer_pb2 import Transfer

COMMANDS_MAX = 16_384
"""Commands that have no answer yet."""


@dataclass(slots=True)
class Asked:
    """A command without an answer. ``unanswered``: a stream that it was given to broke before the answer came."""

    command: pb.PullCommand
    answer: asyncio.Future[Transfer]
    since: float
    given: bool = False
    unanswered: bool = False

    def renew(self, now: float) -> None:
        """Leave a transfer that is asked for again the time that is left of what it was given at first."""
        if self.command.HasField("create"):
            shorten(self.command.create, now - self.since)
        self.since = now


class PullStream:
    """One client's commands.

    ``reopen`` is awaited once when control says that it is not ready: it may have restarted and wait for the engine to
    declare itself.
    """

    def __init__(self, where: str, reopen: Callable[[float], Awaitable[None]]) -> None:
        self._where = where
        self._reopen = reopen
        self._asked: dict[int, Asked] = {}
        self._last_id = 0
        self._outgoing: Outgoing[pb.PullCommand] | None = None

    async def ask(self, command: pb.PullCommand, timeout_s: float) -> Transfer:
        """Send a command, again where that may help, and wait for the answer.

        Raises:
            KvferryError: what control answered; NotReady when it could not be reached within ``timeout_s``.
                ``is_outcome_unknown`` tells whether it may have acted all the same.
        """
        asked = self.give(command)
        try:
            return await self.answer_to(asked, timeout_s)
        finally:
            self.forget(asked)

    def give(self, command: pb.PullCommand) -> Asked:
        """Send a command at once. It is kept, and sent again on every new stream, until whoever gave it forgets it.

        Raises:
            ResourceExhausted: too many commands have no answer yet; nothing was sent.
        """
        if len(self._asked) >= COMMANDS_MAX:
            raise ResourceExhausted(f"{COMMANDS_MAX} commands wait for control's answer, the bound")
        loop = asyncio.get_running_loop()
        self._last_id += 1
        command_id = command.command_id = self._last_id
        asked = self._asked[command_id] = Asked(command, loop.create_future(), loop.time())
        self._give(asked)
        return asked

    def forget(self, asked: Asked) -> None:
        """Drop a command that was given: nobody waits for its answer any more."""
        del self._asked[asked.command.command_id]

    async def answer_to(self, asked: Asked, timeout_s: float) -> Transfer:
        """The answer to a command that was given, sent again where that may help. Raises what :meth:`ask` does."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s) as bound:
                try:
                    return await asked.answer
                except NotReady:
                    await self._reopen((bound.when() or 0.0) - loop.time())
                await asyncio.sleep(RETRY_PAUSE_S)
                asked.answer = loop.create_future()
                asked.renew(loop.time())
                self._give(asked)
                return await asked.answer
        except TimeoutError as error:
            raise mark_outcome_unknown(self._silent(timeout_s)) from error
        except KvferryError as error:
            if asked.unanswered:
                mark_outcome_unknown(error)
            raise

    async def hold(
        self, call: "aio.StreamStreamCall[pb.PullRequest, pb.PullResponse]", on_transfer: Callable[[Transfer], None]
    ) -> None:
        """Use a stream that is in place until it breaks; ``on_transfer`` is told every state that comes.

        Raises:
            grpc.aio.AioRpcError, NotReady: in a group; why it broke.
        """
        lane = await connect_lane(call)
        outgoing = self._outgoing = Outgoing[pb.PullCommand](2 * COMMANDS_MAX)
        now = asyncio.get_running_loop().time()
        for asked in self._asked.values():
            asked.renew(now)
            self._give(asked)
        try:
            async with asyncio.TaskGroup() as tasks:
                if lane is None:
                    tasks.create_task(write_batches(call, outgoing, _message_of))
                else:
                    # Control sees the end of the lane as well, and ends the stream.
                    carry_by(lane, outgoing, partial(self._take_frame, on_transfer), outgoing.close)
                while isinstance(message := await call.read(), pb.PullResponse):
                    self._take_all(message, on_transfer)
                raise NotReady("control ended the stream of pulls")
        finally:
            if lane is not None:
                lane.close()
            self._outgoing = None
            for asked in self._asked.values():
                asked.unanswered = asked.unanswered or asked.given

    def close(self, error: KvferryError) -> None:
        """Have every command fail that has no answer."""
        for asked in self._asked.values():
            if not asked.answer.done():
                asked.answer.set_exception(error)

    def _give(self, asked: Asked) -> None:
        if self._outgoing is not None:
            self._outgoing.put(asked.command)
            asked.given = True

    def _take_frame(self, on_transfer: Callable[[Transfer], None], frame: bytes) -> None:
        self._take_all(pb.PullResponse.FromString(frame), on_transfer)

    def _take_all(self, message: pb.PullResponse, on_transfer: Callable[[Transfer], None]) -> None:
        for event in message.events:
            self._take(event, on_transfer)

    def _take(self, event: pb.PullEvent, on_transfer: Callable[[Transfer], None]) -> None:
        asked = self._asked.get(event.command_id)
        if asked is not None and not asked.answer.done():
            if event.HasField("refused"):
                asked.answer.set_exception(refusal_from_wire(event.refused))
                return
            asked.answer.set_result(event.transfer)
        # Also of an answer: others may wait for the same transfer.
        if event.HasField("transfer"):
            on_transfer(event.transfer)

    def _silent(self, timeout_s: float) -> KvferryError:
        if self._outgoing is None:
            return NotReady(f"control at {self._where} could not be reached in time")
        return DeadlineExceeded(f"control at {self._where} did not answer within {timeout_s:.3g} s")


def _message_of(commands: list[pb.PullCommand]) -> pb.PullRequest:
    return pb.PullRequest(commands=commands)
