"""Pulls under way: how a completion on the shared stream reaches the caller that waits for it.

A pull is entered under its request id before control hears of it, so that no completion can come too early. It ends in
one of four ways, whichever is first: its terminal state arrives on the stream, an answer to a call carries it, control
turns out to have forgotten it, or the client's own bound passes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from kvferry.core.errors import DeadlineExceeded, KvferryError, NotFound, NotReady
from kvferry.engine.v1.engine_pb2 import PullCommand, WithdrawRequest
from kvferry.sdk.calls import is_outcome_unknown, mark_outcome_unknown
from kvferry.sdk.convert import TERMINAL_STATES, transfer_of
from kvferry.sdk.failures import PullFailed, failed_pull, failure_of, pull_failed
from kvferry.sdk.pull_stream import Asked, Learn, PullStream
from kvferry.sdk.results import TransferResult
from kvferry.transfer.v1 import transfer_pb2 as pb

GRACE_S = 0.8
"""After its deadline a transfer has this long to reach its terminal state; then the client stops waiting."""
CANCEL_S = 5.0
"""How long a cancellation waits for its acknowledgement."""
REPAIR_CALL_S = 2.0
LOOK_S = 0.1
"""How often a transfer is asked about that ended unsettled."""

Outcome = TransferResult | PullFailed
Withdraw = Callable[["Pull"], Awaitable[Outcome]]
Settle = Callable[[TransferResult, float], Awaitable[TransferResult]]


class Pull:
    """A transfer under way. Made by ``EngineClient.start_pull``."""

    def __init__(self, request: pb.CreateTransferRequest, withdraw: Withdraw, wait_settled: Settle) -> None:
        self.request = request
        self._withdraw = withdraw
        self._wait_settled = wait_settled
        self._wire = pb.Transfer(request_id=request.request_id)
        self._outcome: Outcome | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._on_done: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """``transfers/{transfer}``."""
        return self._wire.name

    @property
    def request_id(self) -> str:
        """As given, or as chosen by the client."""
        return self.request.request_id

    @property
    def transfer(self) -> TransferResult:
        """The transfer as last heard of."""
        return transfer_of(self._wire)

    def done(self) -> bool:
        """Whether the outcome is known, so that :meth:`wait` returns at once."""
        return self._outcome is not None

    async def wait(self) -> TransferResult:
        """The result, once every byte has arrived and the lease still held; ends by the timeout plus ``GRACE_S``.

        A task that is cancelled while it waits here cancels the transfer, and the CancelledError goes on once that is
        acknowledged.

        Raises:
            PullFailed: it did not succeed; also of the class of its reason. ``transfer`` and ``destination_settled``
                tell what is known.
        """
        try:
            await self.wait_done(asyncio.get_running_loop().create_future())
        except asyncio.CancelledError as cancelled:
            raise cancelled from _cause_of(await self._withdraw(self))
        outcome = self._outcome
        assert outcome is not None
        if isinstance(outcome, PullFailed):
            raise outcome
        if not outcome.succeeded:
            raise failure_of(outcome)
        return outcome

    async def cancel(self) -> TransferResult:
        """Cancel it and wait, at most ``CANCEL_S``, until it is terminal; it may have succeeded before.

        Raises:
            PullFailed: the end was not acknowledged in time, or control has forgotten the transfer.
        """
        outcome = await self._withdraw(self)
        if isinstance(outcome, PullFailed):
            raise outcome
        return outcome

    async def wait_settled(self, timeout_s: float) -> TransferResult:
        """After an end that left the destination unsettled: wait until its data planes have confirmed that no byte can
        still arrive. The blocks may be used again then.

        Raises:
            DeadlineExceeded: they have not within ``timeout_s``.
            KvferryError: control cannot be reached; the blocks must stay out of use.
        """
        return await self._wait_settled(self.transfer, timeout_s)

    async def outcome(self) -> Outcome:
        """The outcome, however it came about; a cancelled waiter leaves it to the others."""
        await self.wait_done(asyncio.get_running_loop().create_future())
        assert self._outcome is not None
        return self._outcome

    async def wait_done(self, waiting: asyncio.Future[None]) -> None:
        """Wait until the outcome is decided, or ``waiting`` is done."""
        # A future of each waiter's own instead of a shield, which would take another turn of the loop.
        if self._outcome is None:
            self._waiting.append(waiting)
            try:
                await waiting
            finally:
                self._waiting.remove(waiting)

    def learn(self, wire: pb.Transfer) -> None:
        """Take in a state of the transfer; a terminal one decides the outcome."""
        if self._outcome is not None:
            return
        if wire.state in TERMINAL_STATES:
            self._wire = wire
            self.settle(transfer_of(wire))
        elif wire.revision >= self._wire.revision:
            self._wire = wire

    def settle(self, outcome: Outcome) -> None:
        """Decide the outcome, unless it is decided."""
        if self._outcome is not None:
            return
        self._outcome = outcome
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the outcome is decided, before anybody who waits for it goes on."""
        self._on_done = callback

    def lost(self, error: KvferryError) -> PullFailed:
        """A failure that leaves open what becomes of the destination blocks."""
        known = replace(self.transfer, destination_settled=False)
        return pull_failed(error, known, settled=False)


class PullTable:
    """The pulls under way of one client, by request id; callers that repeat an id share the transfer."""

    def __init__(self, stream: PullStream, tasks: asyncio.TaskGroup) -> None:
        self._stream = stream
        self._tasks = tasks
        self._pulls: dict[str, list[Pull]] = {}
        self.control_up = False
        """Whether the completion stream is in place."""

    async def start(self, request: pb.CreateTransferRequest, timeout_s: float) -> Pull:
        """Have control make the transfer.

        Raises:
            PullFailed: control refused, or could not be reached until the timeout.
        """
        pull = self._enter(request, timeout_s)
        await self._ask(pull, PullCommand(create=request), timeout_s)
        if pull.done() and isinstance(outcome := await pull.outcome(), PullFailed):
            raise outcome
        return pull

    async def run(self, request: pb.CreateTransferRequest, timeout_s: float) -> TransferResult:
        """Have control make the transfer, and wait for its end: one command, one answer.

        Raises:
            PullFailed: it did not succeed.
        """
        pull = self._enter(request, timeout_s)
        command = PullCommand(create=request, answer_at_end=True)
        asked = self._give(pull, command, timeout_s + GRACE_S, pull.learn)
        try:
            return await pull.wait()
        finally:
            if asked is not None:
                self._stream.forget(asked)

    async def _ask(self, pull: Pull, command: PullCommand, timeout_s: float) -> None:
        """Give a command and wait for its answer, or for the pull's end if that is told sooner."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def learn(transfer: pb.Transfer) -> None:
            pull.learn(transfer)
            if not answered.done():
                answered.set_result(None)

        asked = self._give(pull, command, timeout_s, learn)
        if asked is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await pull.wait_done(answered)
        except TimeoutError:
            pull.settle(_failure_by(pull, self._stream.silence(timeout_s)))
        except asyncio.CancelledError as cancelled:
            raise cancelled from _cause_of(await self._withdraw(pull))
        finally:
            self._stream.forget(asked)

    def _give(self, pull: Pull, command: PullCommand, timeout_s: float, learn: Learn) -> Asked | None:
        """Give a command at once, its refusal to be the pull's end; None if it cannot be given, as the pull says."""

        def refuse(error: KvferryError) -> None:
            pull.settle(_failure_by(pull, error))

        try:
            return self._stream.give(command, timeout_s, learn, refuse)
        except KvferryError as error:
            refuse(error)
            return None

    async def wait_settled(self, transfer: TransferResult, timeout_s: float) -> TransferResult:
        """Wait until no byte of a transfer can still arrive.

        Raises:
            DeadlineExceeded: that was not so within ``timeout_s``.
            KvferryError: control cannot be reached.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._is_settled(transfer):  # noqa: ASYNC110 - of others
                    await asyncio.sleep(LOOK_S)
        except TimeoutError as error:
            what = transfer.name or f"the transfer of request_id {transfer.request_id}"
            raise DeadlineExceeded(f"{what} has not settled within {timeout_s:g} s") from error
        return replace(transfer, destination_settled=True)

    async def wait_settled_after(self, error: BaseException, timeout_s: float) -> TransferResult | None:
        """As :meth:`wait_settled`, of the transfer of a pull that raised ``error``; None if none was made."""
        failed = failed_pull(error)
        if failed is None or failed.transfer is None or failed.destination_settled:
            return None if failed is None else failed.transfer
        return await self.wait_settled(failed.transfer, timeout_s)

    def learn(self, wire: pb.Transfer) -> None:
        """Take in a state that control told."""
        for pull in tuple(self._pulls.get(wire.request_id, ())):
            pull.learn(wire)

    async def repair(self) -> None:
        """Hear of the end of every pull under way, after the stream was interrupted.

        Raises:
            KvferryError: in a group; the connection broke again.
        """
        async with asyncio.TaskGroup() as watches:
            for pull in self._under_way():
                # What has no name yet is asked for again by itself: its command has no answer.
                if pull.name:
                    watches.create_task(self._watch_again(pull))

    async def close(self) -> None:
        """Cancel what is under way, for at most ``CANCEL_S``; then every pull is decided."""
        async with asyncio.TaskGroup() as cancellations:
            for pull in self._under_way():
                cancellations.create_task(self._cancel(pull))
        closed = NotReady("the client was closed")
        for pull in self._under_way():
            pull.settle(pull.lost(closed))
        self._stream.close(closed)

    async def _watch_again(self, pull: Pull) -> None:
        watch = PullCommand(watch=pb.GetTransferRequest(name=pull.name))
        try:
            transfer = await self._stream.ask(watch, REPAIR_CALL_S)
        except NotFound:
            pull.settle(pull.lost(_forgotten(pull)))
            return
        # A name that means another transfer now is as good as forgotten.
        if transfer.request_id == pull.request_id:
            pull.learn(transfer)
        else:
            pull.settle(pull.lost(_forgotten(pull)))

    async def _is_settled(self, transfer: TransferResult) -> bool:
        """Whether no byte of a transfer that has ended here can still arrive.

        It is withdrawn, since control may not have heard of its end, or of it; an answer without a name is of one that
        was never made, or that only an earlier life of control knew.
        """
        if transfer.request_id in self._pulls:
            # The request was made again: it is under way.
            return False
        return (await self._stream.ask(_withdrawal(transfer.request_id), REPAIR_CALL_S)).destination_settled

    def _under_way(self) -> list[Pull]:
        return [pull for pulls in self._pulls.values() for pull in pulls if not pull.done()]

    def _enter(self, request: pb.CreateTransferRequest, timeout_s: float) -> Pull:
        pull = Pull(request, self._withdraw, self.wait_settled)
        request_id = request.request_id
        timer = asyncio.get_running_loop().call_later(timeout_s + GRACE_S, self._expire, pull)
        self._pulls.setdefault(request_id, []).append(pull)

        def leave() -> None:
            timer.cancel()
            sharers = self._pulls[request_id]
            sharers.remove(pull)
            if not sharers:
                del self._pulls[request_id]

        pull.when_done(leave)
        return pull

    def _expire(self, pull: Pull) -> None:
        if self.control_up:
            error: KvferryError = DeadlineExceeded("control did not end the transfer by its deadline")
        else:
            error = NotReady("control cannot be reached, and the transfer's deadline has passed")
        # Without a name it is not even known whether control made the transfer.
        pull.settle(pull.lost(error if pull.name else mark_outcome_unknown(error)))

    async def _withdraw(self, pull: Pull) -> Outcome:
        """Cancel on control and wait for the acknowledgement, also if the caller is cancelled once more."""
        if pull.done():
            return await pull.outcome()
        return await asyncio.shield(self._tasks.create_task(self._cancel(pull)))

    async def _cancel(self, pull: Pull) -> Outcome:
        asking = self._tasks.create_task(self._ask_to_cancel(pull))
        ending = self._tasks.create_task(pull.outcome())
        try:
            async with asyncio.timeout(CANCEL_S):
                # The outcome may come without an answer: the pull's own bound passes, also while control is silent.
                await asyncio.wait((asking, ending), return_when=asyncio.FIRST_COMPLETED)
                if not ending.done() and (failure := asking.result()) is not None:
                    return failure
                return await ending
        except TimeoutError:
            return pull.lost(DeadlineExceeded(f"the cancellation was not acknowledged within {CANCEL_S:g} s"))
        finally:
            asking.cancel()
            ending.cancel()

    async def _ask_to_cancel(self, pull: Pull) -> PullFailed | None:
        """Have control end the transfer; why that cannot be had, if so."""
        try:
            # Also of one whose name was not heard, and of one that an earlier life of control made.
            pull.learn(await self._stream.ask(_withdrawal(pull.request_id), CANCEL_S))
        except KvferryError as error:
            failure = pull.lost(error)
            if not is_outcome_unknown(error):
                pull.settle(failure)
            return failure
        return None


def _failure_by(pull: Pull, error: KvferryError) -> PullFailed:
    failure = _not_made(pull, error)
    failure.__cause__ = error
    return failure


def _not_made(pull: Pull, error: KvferryError) -> PullFailed:
    return pull.lost(error) if is_outcome_unknown(error) else pull_failed(error)


def _cause_of(ended: Outcome) -> PullFailed | None:
    """What a CancelledError carries: whether the blocks may be used again, unless all had arrived before."""
    if isinstance(ended, PullFailed):
        return ended
    return None if ended.succeeded else failure_of(ended)


def _withdrawal(request_id: str) -> PullCommand:
    return PullCommand(withdraw=WithdrawRequest(request_id=request_id))


def _forgotten(transfer: Pull) -> NotReady:
    return NotReady(f"control restarted and no longer knows {transfer.name}", metadata={"transfer": transfer.name})
