"""The link to one data plane: one long-lived stream for commands and events, re-made whenever it breaks."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import grpc
import structlog
from grpc import aio

from kvferry.core.errors import DataPlaneLost, KvferryError, RetryableError, error_of
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.dataplane.v1.dataplane_pb2_grpc import DataPlaneServiceStub
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.lanes import connect_lane
from kvferry.rpc.options import channel_options
from kvferry.rpc.reasons import reason_from_wire
from kvferry.rpc.socket_paths import is_listened_to
from kvferry.rpc.streams import Outgoing
from kvferry_control.tasks import Spawn

OUTGOING_COMMANDS_MAX = 8_192
UNARY_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 5.0
RECONNECT_S = 0.1
LANE_END_S = 0.5


class LinkListener(Protocol):
    """Who is told what the data planes say. Called in order, from one task per link; must not block."""

    async def link_up(self, link: "RankLink", description: pb.DescribeResponse, opened: pb.SessionOpened) -> None:
        """A session is in place. May send commands, but not wait for their answers: the next event is read afterwards.

        A RetryableError from here ends the session, and another is made.
        """

    def link_down(self, link: "RankLink") -> None:
        """The session broke; another may follow with the same life of the data plane, which may have been stopped."""

    def link_gone(self, link: "RankLink") -> None:
        """After the session broke: the data plane has died, or is about to. Told once."""

    def lease_ended(self, link: "RankLink", event: pb.LeaseEnded) -> None:
        """A lease ended that no command asked to end."""

    def read_finished(self, link: "RankLink", event: pb.ReadFinished) -> None:
        """A read is over."""

    def read_refused(self, link: "RankLink", transfer: str, error: KvferryError) -> None:
        """A read was not accepted."""

    def peer_attested(self, link: "RankLink", event: pb.PeerAttested) -> None:
        """What was found out about the ways to a source rank."""

    def link_leaving(self, link: "RankLink") -> None:
        """``link.leaving`` changed."""


class RankLink:
    """Commands to and events from the data plane of one rank.

    ``up`` tells whether a session is in place. Commands fail with DataPlaneLost while it is not.
    """

    def __init__(
        self, rank: int, socket: str, listener: LinkListener, on_lane_passed: Callable[[], None] = lambda: None
    ) -> None:
        """``on_lane_passed`` is called whenever something passed the session's lane."""
        self.rank = rank
        self.socket = socket
        self.up = False
        self.session_count = 0
        """Sessions so far: what was posted in an earlier one may be lost."""
        self.leaving = False
        """Whether the data plane was told to end, and waits to be let go."""
        self.description: pb.DescribeResponse | None = None
        self._listener = listener
        self._on_lane_passed = on_lane_passed
        self._channel = aio.insecure_channel(f"unix:{socket}", options=channel_options())
        self._stub = DataPlaneServiceStub(self._channel)
        self._outgoing: Outgoing[pb.SessionRequest] = Outgoing(OUTGOING_COMMANDS_MAX)
        self._answers: dict[int, asyncio.Future[pb.SessionResponse]] = {}
        self._reads: dict[int, str] = {}
        self._last_id = 0
        self._adopting = asyncio.Lock()
        self.gone = True
        """Nobody listens at the socket, or has been heard of there yet."""
        self._log = structlog.get_logger("kvferry.control.link").bind(rank=rank, socket=socket)

    async def run(self, spawn: Spawn) -> None:
        """Keep a session in place until cancelled."""
        waiting_said = False
        try:
            while True:
                try:
                    await self._session(spawn)
                except (grpc.RpcError, RetryableError) as error:
                    if not waiting_said:
                        failure = from_rpc(error) if isinstance(error, grpc.RpcError) else error
                        self._log.warning("data plane cannot be reached; trying on", error=str(failure))
                        waiting_said = True
                else:
                    waiting_said = False
                self._look_whether_gone()
                await asyncio.sleep(RECONNECT_S)
        finally:
            await self._channel.close()

    async def adopt(self, adoption: Callable[[], pb.Adoption]) -> None:
        """Tell the data plane whose it is: what ``adoption`` says when its turn has come.

        Calls may overtake one another on their way, so that one goes after the other: what was told last is what holds.

        Raises:
            KvferryError: it refused, or is gone.
        """
        async with self._adopting:
            try:
                await self._stub.Adopt(pb.AdoptRequest(adoption=adoption()), timeout=UNARY_TIMEOUT_S)
            except grpc.RpcError as error:
                failure = from_rpc(error)
                if failure.reason in (Reason.PEER_UNREACHABLE, Reason.DEADLINE_EXCEEDED):
                    raise self._lost(failure.message) from error
                raise failure from error

    async def command(self, request: pb.SessionRequest, timeout_s: float = COMMAND_TIMEOUT_S) -> pb.SessionResponse:
        """Send a command and wait for its answer.

        Raises:
            DataPlaneLost: the session is not in place, broke, or did not answer in time.
            KvferryError: the command was refused; the reason is the data plane's.
        """
        answer: asyncio.Future[pb.SessionResponse] = asyncio.get_running_loop().create_future()
        command_id = self._enqueue(request)
        self._answers[command_id] = answer
        try:
            async with asyncio.timeout(timeout_s):
                response = await answer
        except TimeoutError as error:
            raise self._lost(f"no answer to {request.WhichOneof('command')} in {timeout_s} s") from error
        finally:
            self._answers.pop(command_id, None)
        if response.WhichOneof("event") == "command_refused":
            raise _refusal(response.command_refused)
        return response

    def post(self, request: pb.SessionRequest) -> None:
        """Send a command whose answer nobody waits for; a refused read still reaches ``read_refused``.

        Raises:
            DataPlaneLost: the session is not in place.
            ResourceExhausted: too many commands are waiting to be sent.
        """
        command_id = self._enqueue(request)
        if request.WhichOneof("command") == "read":
            self._reads[command_id] = request.read.transfer

    def _enqueue(self, request: pb.SessionRequest) -> int:
        if not self.up:
            raise self._lost("no session")
        self._last_id += 1
        request.command_id = self._last_id
        self._outgoing.put(request)
        return self._last_id

    async def _session(self, spawn: Spawn) -> None:
        """One session, from connecting to its end."""
        description = await self._stub.Describe(pb.DescribeRequest(), timeout=UNARY_TIMEOUT_S)
        outgoing = self._outgoing = Outgoing(OUTGOING_COMMANDS_MAX)
        call = self._stub.Session()
        lane = await connect_lane(call, on_passed=self._on_lane_passed)
        writing: asyncio.Task[None] | None = None
        if lane is None:
            writing = spawn(_write(call, outgoing))
        else:
            # A command is a message of its own here.
            outgoing.go_by(lane, list)
        try:
            async for response in call:
                if response.WhichOneof("event") == "opened":
                    self.description = description
                    self.session_count += 1
                    self.up, self.gone = True, False
                    await self._listener.link_up(self, description, response.opened)
                    self._set_leaving(response.opened.leaving)
                    if lane is not None:
                        # Only now: what happens next is told after that. The data plane sees the lane's end as well.
                        lane.begin(self._take_frame, outgoing.close, outgoing.flush)
                else:
                    self._dispatch(response)
            if lane is not None:
                # What the data plane said last may still be under way there.
                await lane.wait_ended(LANE_END_S)
        finally:
            if writing is not None:
                writing.cancel()
            if lane is not None:
                lane.close()
            call.cancel()
            self._break()

    def _break(self) -> None:
        was_up, self.up = self.up, False
        self._reads.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._lost("the session broke"))
        if was_up:
            self._log.warning("session with data plane broke")
            self._listener.link_down(self)
        self._set_leaving(False)

    def _look_whether_gone(self) -> None:
        if self.gone:
            return
        try:
            self.gone = not is_listened_to(Path(self.socket))
        except PermissionError as error:
            self._log.warning("data plane may be gone or not", error=str(error))
        if self.gone:
            self._listener.link_gone(self)

    def _set_leaving(self, leaving: bool) -> None:
        if leaving != self.leaving:
            self.leaving = leaving
            self._listener.link_leaving(self)

    def _take_frame(self, frame: bytes) -> None:
        self._dispatch(pb.SessionResponse.FromString(frame))

    def _dispatch(self, response: pb.SessionResponse) -> None:
        kind = response.WhichOneof("event")
        answer = self._answers.get(response.command_id) if response.command_id else None
        read = self._reads.pop(response.command_id, None) if response.command_id else None
        if kind == "read_finished":
            self._listener.read_finished(self, response.read_finished)
        elif read is not None and kind == "command_refused":
            self._listener.read_refused(self, read, _refusal(response.command_refused))
        elif answer is not None:
            if not answer.done():
                answer.set_result(response)
        elif kind == "lease_ended":
            self._listener.lease_ended(self, response.lease_ended)
        elif kind == "peer_attested":
            self._listener.peer_attested(self, response.peer_attested)
        elif kind == "leaving":
            self._set_leaving(True)
        elif kind == "command_refused":
            self._log.warning("command refused", error=str(_refusal(response.command_refused)))

    def _lost(self, why: str) -> DataPlaneLost:
        return DataPlaneLost(f"rank {self.rank}: {why}", metadata={"rank": str(self.rank), "socket": self.socket})


async def _write(
    call: "aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]", outgoing: Outgoing[pb.SessionRequest]
) -> None:
    """Send commands in order until the session breaks; who reads the session says why it did."""
    while batch := await outgoing.take():
        for command in batch:
            try:
                await call.write(command)
            except (grpc.RpcError, aio.UsageError, asyncio.InvalidStateError):
                return


def _refusal(refused: pb.CommandRefused) -> KvferryError:
    return error_of(reason_from_wire(refused.reason), refused.message, dict(refused.metadata))
