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

Learn = Callable[[Transfer], None]
Refuse = Callable[[KvferryError], None]


@dataclass(slots=True)
class Asked:
    """A command without an answer, for which nobody waits past ``until``, on the loop's clock.

    ``learn`` is called with its answer, ``refuse`` with why there is none, as soon as the stream tells. ``unanswered``:
    a stream that it was given to broke before the answer came. ``again``: what gives it once more, where control was
    not ready.
    """

    command: pb.PullCommand
    learn: Learn
    refuse: Refuse
    until: float
    since: float
    given: bool = False
    unanswered: bool = False
    again: asyncio.Task[None] | None = None

    def renew(self, now: float) -> None:
        """Leave a transfer that is asked for again the time that is left of what it was given at first."""
        if self.command.HasField("create"):
            shorten(self.command.create, now - self.since)
        self.since = now


class PullStream:
    """One client's commands.

    ``reopen`` is awaited once when control says that it is not ready: it may have restarted and wait for the engine to
    declare itself. ``tasks`` outlives the stream.
    """

    def __init__(self, where: str, reopen: Callable[[float], Awaitable[None]], tasks: asyncio.TaskGroup) -> None:
        self._where = where
        self._reopen = reopen
        self._tasks = tasks
        self._asked: dict[int, Asked] = {}
        self._last_id = 0
        self._outgoing: Outgoing[pb.PullCommand] | None = None

    async def ask(self, command: pb.PullCommand, timeout_s: float) -> Transfer:
        """Send a command, again where that may help, and wait for the answer.

        Raises:
            KvferryError: what control answered; NotReady when it could not be reached within ``timeout_s``.
                ``is_outcome_unknown`` tells whether it may have acted all the same.
        """
        answer: asyncio.Future[Transfer] = asyncio.get_running_loop().create_future()
        asked = self.give(command, timeout_s, partial(_tell, answer), partial(_fail, answer))
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise self.silence(timeout_s) from error
        finally:
            self.forget(asked)

    def give(self, command: pb.PullCommand, timeout_s: float, learn: Learn, refuse: Refuse) -> Asked:
        """Send a command at once. It is kept, and sent again on every new stream, until whoever gave it forgets it.

        That is before ``timeout_s`` seconds have passed, whether or not it was answered.

        Raises:
            ResourceExhausted: too many commands have no answer yet; nothing was sent.
        """
        if len(self._asked) >= COMMANDS_MAX:
            raise ResourceExhausted(f"{COMMANDS_MAX} commands wait for control's answer, the bound")
        now = asyncio.get_running_loop().time()
        self._last_id += 1
        command_id = command.command_id = self._last_id
        asked = self._asked[command_id] = Asked(command, learn, refuse, now + timeout_s, now)
        self._give(asked)
        return asked

    def forget(self, asked: Asked) -> None:
        """Drop a command that was given: nobody waits for its answer any more."""
        del self._asked[asked.command.command_id]
        if asked.again is not None:
            asked.again.cancel()

    def silence(self, timeout_s: float) -> KvferryError:
        """What a command fails with that had no answer for so long; control may have acted all the same."""
        if self._outgoing is None:
            return mark_outcome_unknown(NotReady(f"control at {self._where} could not be reached in time"))
        why = f"control at {self._where} did not answer within {timeout_s:.3g} s"
        return mark_outcome_unknown(DeadlineExceeded(why))

    async def hold(self, call: "aio.StreamStreamCall[pb.PullRequest, pb.PullResponse]", on_transfer: Learn) -> None:
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
                    for event in message.events:
                        self._take(event, on_transfer)
                raise NotReady("control ended the stream of pulls")
        finally:
            if lane is not None:
                lane.close()
            self._outgoing = None
            for asked in self._asked.values():
                asked.unanswered = asked.unanswered or asked.given

    def close(self, error: KvferryError) -> None:
        """Have every command fail that has no answer."""
        for asked in tuple(self._asked.values()):
            self._fail(asked, error)

    def _give(self, asked: Asked) -> None:
        if self._outgoing is not None:
            self._outgoing.put(asked.command)
            asked.given = True

    def _take_frame(self, on_transfer: Learn, frame: bytes) -> None:
        for event in pb.PullResponse.FromString(frame).events:
            self._take(event, on_transfer)

    def _take(self, event: pb.PullEvent, on_transfer: Learn) -> None:
        asked = self._asked.get(event.command_id)
        kind = event.WhichOneof("event")
        if kind == "refused":
            if asked is not None:
                self._refused(asked, refusal_from_wire(event.refused))
            return
        transfer = event.transfer
        if asked is not None:
            asked.learn(transfer)
        # Also of an answer: others may wait for the same transfer.
        if kind == "transfer":
            on_transfer(transfer)

    def _refused(self, asked: Asked, error: KvferryError) -> None:
        if asked.again is None and isinstance(error, NotReady):
            asked.again = self._tasks.create_task(self._give_again(asked))
        elif asked.again is None or asked.again.done():
            self._fail(asked, error)

    async def _give_again(self, asked: Asked) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._reopen(asked.until - loop.time())
            await asyncio.sleep(RETRY_PAUSE_S)
            asked.renew(loop.time())
            self._give(asked)
        except KvferryError as error:
            self._fail(asked, error)

    def _fail(self, asked: Asked, error: KvferryError) -> None:
        asked.refuse(mark_outcome_unknown(error) if asked.unanswered else error)


def _tell(answer: asyncio.Future[Transfer], transfer: Transfer) -> None:
    if not answer.done():
        answer.set_result(transfer)


def _fail(answer: asyncio.Future[Transfer], error: KvferryError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _message_of(commands: list[pb.PullCommand]) -> pb.PullRequest:
    return pb.PullRequest(commands=commands)
