"""The stream to one source's control: negotiations and conclusions, as many in a message as wait to be sent.

It is opened when it is first needed and made anew after a break. A break fails the negotiations under way as an
unreachable peer, to be asked again by who asked; conclusions are kept and sent again until the source has taken them.
A source that serves no such stream is asked by unary calls.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc
import structlog
from grpc import aio

from kvferry.core.errors import ChecksumsAbsent, DeadlineExceeded, KvferryError, PeerError, ResourceExhausted
from kvferry.core.reasons import Reason
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.lanes import Lane, connect_lane
from kvferry.rpc.refusals import refusal_from_wire
from kvferry.rpc.streams import Outgoing, carry_by, write_batches
from kvferry.rpc.times import put_duration
from kvferry_control.peers.announced import Announced
from kvferry_control.tasks import Spawn

if TYPE_CHECKING:
    from kvferry.negotiation.v1.negotiation_pb2_grpc import NegotiationServiceAsyncStub
CALLS_MAX = 8_192
"""Negotiations under way with one source, and conclusions that it has not taken yet."""
CONCLUDE_S = 2.0
"""How long a conclusion is tried."""
REOPEN_PAUSE_S = 0.1


Answered = Callable[[pb.NegotiateResponse | KvferryError], None]
"""Told once of the answer to a negotiation, or why there is none."""


class _NoSession(KvferryError):
    """The source serves unary calls only."""


@dataclass(slots=True)
class _Question:
    """A negotiation under way."""

    request: pb.NegotiateRequest
    timeout_s: float
    answered: Answered
    waits_for: "asyncio.Handle | asyncio.Task[None]"
    """What ends it if no answer does: its timer, the unary call, or the failure that it is about to hear of."""


class NegotiationSession:
    """What is asked of one life of a source. Runs on ``spawn``; ends by :meth:`close`."""

    def __init__(self, worker: str, stub: "NegotiationServiceAsyncStub", spawn: Spawn) -> None:
        self._worker = worker
        self._stub = stub
        self._spawn = spawn
        self._outgoing = self._fresh_outgoing()
        self._waiting: dict[int, _Question] = {}
        self._conclusions: OrderedDict[int, tuple[pb.ConcludeRequest, float]] = OrderedDict()
        self._last_id = 0
        self._running: asyncio.Task[None] | None = None
        self._serves_sessions = True
        self._closed: KvferryError | None = None
        self.announced = Announced()
        """What the source has told unasked."""
        self._log = structlog.get_logger("kvferry.control.sources").bind(worker=worker)

    def ask(self, request: pb.NegotiateRequest, timeout_s: float, answered: Answered) -> Callable[[], None]:
        """Ask, once: the question is on its way when this returns. What is returned makes that nobody hears of it.

        ``answered`` hears of the answer later, never before this returns: of a refusal with the source's reason; of
        PeerError, if the source cannot be reached; of DeadlineExceeded, if there is no answer within ``timeout_s``; of
        what :meth:`close` was called with.

        Raises:
            ResourceExhausted: too many negotiations are under way.
            NotReady: this control stops.
            KvferryError: what :meth:`close` was called with before.
        """
        if self._closed is not None:
            raise self._closed
        self._last_id += 1
        call_id = self._last_id
        if self._serves_sessions:
            self._ask_on_stream(call_id, request, timeout_s, answered)
        else:
            asking = self._spawn(self._negotiate_unary(call_id, request, timeout_s))
            self._waiting[call_id] = _Question(request, timeout_s, answered, asking)
        return partial(self._forget, call_id)

    def conclude(self, request: pb.ConcludeRequest) -> None:
        """Tell the source that a transfer is over; tried for ``CONCLUDE_S`` seconds. A loss is logged, no more."""
        if self._closed is not None:
            return
        if not self._serves_sessions:
            self._spawn(self._conclude_unary(request))
        elif len(self._conclusions) >= CALLS_MAX:
            self._give_up(request, "too many conclusions wait")
        else:
            self._last_id += 1
            self._conclusions[self._last_id] = request, time.monotonic()
            self._outgoing.put(pb.SessionCall(call_id=self._last_id, conclude=request))
            self._ensure_running()

    async def checksums(self, request: pb.ChecksumsRequest, timeout_s: float) -> pb.ChecksumsResponse:
        """Ask for checksums, by a call of its own: their size must not hold up the negotiations of others.

        Raises:
            KvferryError: as :meth:`negotiate`; ChecksumsAbsent also from a source that knows of none.
        """
        if self._closed is not None:
            raise self._closed
        try:
            return await self._checksums_unary(request, timeout_s)
        except KvferryError as failure:
            if failure.reason is Reason.PROTOCOL_MISMATCH:
                raise ChecksumsAbsent(f"workers/{self._worker} knows of no checksums") from failure
            raise

    def close(self, error: KvferryError) -> None:
        """End the stream; what waits for an answer ends with ``error``."""
        self._closed = error
        self._fail_waiting(error)
        if self._running is not None:
            self._running.cancel()

    def _ask_on_stream(self, call_id: int, request: pb.NegotiateRequest, timeout_s: float, answered: Answered) -> None:
        if len(self._waiting) >= CALLS_MAX:
            raise ResourceExhausted.of_bound(
                "negotiations", CALLS_MAX, f"so many with workers/{self._worker} are under way"
            )
        self._ensure_running()
        call = pb.SessionCall(call_id=call_id, negotiate=request)
        put_duration(call.time_left, timeout_s)
        self._outgoing.put(call)
        timer = asyncio.get_running_loop().call_later(timeout_s, self._time_out, call_id, timeout_s)
        self._waiting[call_id] = _Question(request, timeout_s, answered, timer)

    def _time_out(self, call_id: int, timeout_s: float) -> None:
        self._end(call_id, DeadlineExceeded(f"no answer within {timeout_s:.3g} s"))

    def _end(self, call_id: int, answer: pb.NegotiateResponse | KvferryError) -> None:
        question = self._waiting.pop(call_id, None)
        if question is not None:
            question.answered(answer)

    def _forget(self, call_id: int) -> None:
        question = self._waiting.pop(call_id, None)
        if question is not None:
            question.waits_for.cancel()

    async def _checksums_unary(self, request: pb.ChecksumsRequest, timeout_s: float) -> pb.ChecksumsResponse:
        try:
            response: pb.ChecksumsResponse = await self._stub.Checksums(request, timeout=timeout_s)
        except (aio.UsageError, asyncio.CancelledError) as error:
            if self._closed is None or _is_cancelled():
                raise
            raise self._closed from error
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        return response

    async def _negotiate_unary(self, call_id: int, request: pb.NegotiateRequest, timeout_s: float) -> None:
        try:
            answer: pb.NegotiateResponse | KvferryError = await self._stub.Negotiate(request, timeout=timeout_s)
        except aio.UsageError as error:
            # How a call begins whose channel is closed.
            answer = self._closed or PeerError(f"workers/{self._worker} cannot be asked: {error}")
        except grpc.RpcError as error:
            answer = from_rpc(error)
        self._end(call_id, answer)

    async def _conclude_unary(self, request: pb.ConcludeRequest) -> None:
        try:
            await self._stub.Conclude(request, timeout=CONCLUDE_S)
        except grpc.RpcError as error:
            self._give_up(request, str(from_rpc(error)))

    def _ensure_running(self) -> None:
        if self._running is None:
            self._running = self._spawn(self._run())

    async def _run(self) -> None:
        """Hold a stream until it breaks, and another one as long as there are conclusions to send."""
        try:
            while True:
                failure = await self._hold_stream()
                self._outgoing = self._fresh_outgoing()
                if isinstance(failure, _NoSession):
                    self._go_unary()
                    return
                self._fail_waiting(failure)
                self._requeue_conclusions(failure)
                if not self._conclusions:
                    return
                await asyncio.sleep(REOPEN_PAUSE_S)
        finally:
            self._running = None

    async def _hold_stream(self) -> KvferryError:
        """Hold one stream until it breaks; why it did."""
        # While there was no stream the source could not say what has ended.
        self.announced.clear()
        call = self._stub.Session()
        lane: Lane | None = None
        writing: asyncio.Task[None] | None = None
        try:
            lane = await connect_lane(call, same_network=True)
            if lane is None:
                writing = self._spawn(write_batches(call, self._outgoing, _message_of))
            else:
                # The source sees the end of the lane as well, and ends the stream.
                carry_by(lane, self._outgoing, self._take_frame, self._outgoing.close)
            while isinstance(message := await call.read(), pb.SessionResponse):
                self._take_all(message)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return _NoSession(f"workers/{self._worker} serves no sessions")
            return from_rpc(error)
        finally:
            if writing is not None:
                writing.cancel()
            if lane is not None:
                lane.close()
            call.cancel()
        return PeerError(f"workers/{self._worker} ended the session")

    def _take_frame(self, frame: bytes) -> None:
        self._take_all(pb.SessionResponse.FromString(frame))

    def _take_all(self, message: pb.SessionResponse) -> None:
        for answer in message.answers:
            self._take(answer)

    def _take(self, answer: pb.SessionAnswer) -> None:
        kind = answer.WhichOneof("answer")
        if kind == "concluded":
            while self._conclusions and next(iter(self._conclusions)) <= answer.call_id:
                self._conclusions.popitem(last=False)
            return
        if kind == "announced":
            self.announced.take(answer.announced)
            return
        if kind == "withdrawn":
            self.announced.drop(answer.withdrawn)
            return
        question = self._waiting.pop(answer.call_id, None)
        # Nobody waits for the answer to a negotiation any more that was cancelled or timed out.
        if question is None:
            return
        question.waits_for.cancel()
        question.answered(answer.negotiated if kind == "negotiated" else refusal_from_wire(answer.refused))

    def _fail_waiting(self, error: KvferryError) -> None:
        """Have who waits hear of it in a turn of their own: what they do then may ask this session again, or end it."""
        loop = asyncio.get_running_loop()
        for call_id, question in self._waiting.items():
            question.waits_for.cancel()
            question.waits_for = loop.call_soon(self._end, call_id, error)

    def _requeue_conclusions(self, failure: KvferryError) -> None:
        """Have the next stream begin with what the last may not have brought over."""
        too_old = time.monotonic() - CONCLUDE_S
        while self._conclusions and (oldest := next(iter(self._conclusions.values())))[1] < too_old:
            self._conclusions.popitem(last=False)
            self._give_up(oldest[0], str(failure))
        for call_id, (request, _since) in self._conclusions.items():
            self._outgoing.put(pb.SessionCall(call_id=call_id, conclude=request))

    def _go_unary(self) -> None:
        self._serves_sessions = False
        self._log.warning("the source serves no sessions; it is asked by unary calls")
        for call_id, question in self._waiting.items():
            question.waits_for.cancel()
            question.waits_for = self._spawn(self._negotiate_unary(call_id, question.request, question.timeout_s))
        for request, _since in self._conclusions.values():
            self._spawn(self._conclude_unary(request))
        self._conclusions.clear()

    def _give_up(self, request: pb.ConcludeRequest, why: str) -> None:
        self._log.warning("source not told of the end; its lease ends by itself", transfer=request.transfer, error=why)

    @staticmethod
    def _fresh_outgoing() -> Outgoing[pb.SessionCall]:
        # Negotiations that nobody waits for any more may still be in it.
        return Outgoing(4 * CALLS_MAX)


def _message_of(calls: list[pb.SessionCall]) -> pb.SessionRequest:
    return pb.SessionRequest(calls=calls)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
