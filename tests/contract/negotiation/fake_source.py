"""A scripted source control: real gRPC, with answers that a test decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
from grpc import aio

from kvferry.core.errors import KvferryError
from kvferry.negotiation.v1 import negotiation_pb2 as pb, negotiation_pb2_grpc
from kvferry.rpc.errors import unary_method
from kvferry.rpc.options import server_options
from kvferry.rpc.refusals import refusal_to_wire

Context = aio.ServicerContext[object, object]


class FakeSource(negotiation_pb2_grpc.NegotiationServiceServicer):
    """One life of a source. ``messages`` are what came on sessions, ``unary`` what came by unary calls.

    A test sets ``refusal`` to an error that negotiations get, ``silent`` to leave them without an answer, and
    ``before`` to what happens before a message is answered. ``acknowledges``: conclusions are acknowledged.
    """

    def __init__(self, serves_sessions: bool = True) -> None:
        self.messages: list[pb.SessionRequest] = []
        self.unary: list[str] = []
        self.sessions = 0
        self.refusal: KvferryError | None = None
        self.silent = False
        self.acknowledges = True
        self.before: Callable[[], Awaitable[None]] | None = None
        self.endpoint = ""
        self._serves_sessions = serves_sessions
        self._breaks: list[asyncio.Event] = []
        self._server = aio.server(options=server_options())
        negotiation_pb2_grpc.add_NegotiationServiceServicer_to_server(self, self._server)

    async def start(self, endpoint: str = "127.0.0.1:0") -> "FakeSource":
        """Listen."""
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port(endpoint)}"
        await self._server.start()
        return self

    async def kill(self) -> None:
        """End every call and stop listening at once."""
        await self._server.stop(0)

    def break_sessions(self) -> None:
        """End the sessions that are open."""
        for broken in self._breaks:
            broken.set()

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Kind and transfer of every call on every session, in order."""
        calls = [call for message in self.messages for call in message.calls]
        return [(kind, getattr(call, kind).transfer) for call in calls if (kind := call.WhichOneof("call")) is not None]

    async def Session(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> None:
        if not self._serves_sessions:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        self.sessions += 1
        broken = asyncio.Event()
        self._breaks.append(broken)
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(request_iterator, context))
            await broken.wait()
            reading.cancel()

    async def _read(self, requests: AsyncIterator[pb.SessionRequest], context: Context) -> None:
        async for message in requests:
            self.messages.append(message)
            if self.before is not None:
                await self.before()
            answers = [answer for call in message.calls if (answer := self._answer(call)) is not None]
            if answers:
                await context.write(pb.SessionResponse(answers=answers))

    def _answer(self, call: pb.SessionCall) -> pb.SessionAnswer | None:
        if call.HasField("conclude"):
            concluded = pb.SessionAnswer(call_id=call.call_id, concluded=pb.ConcludeResponse())
            return concluded if self.acknowledges else None
        if self.silent:
            return None
        if self.refusal is not None:
            return pb.SessionAnswer(call_id=call.call_id, refused=refusal_to_wire(self.refusal))
        return pb.SessionAnswer(call_id=call.call_id, negotiated=self.response(call.negotiate))

    @staticmethod
    def response(request: pb.NegotiateRequest) -> pb.NegotiateResponse:
        """An answer that tells which request it is for."""
        return pb.NegotiateResponse(incarnation=7, token_count=int(request.transfer.rpartition("-")[2] or 0))

    @unary_method
    async def Negotiate(self, request: pb.NegotiateRequest, context: Context) -> pb.NegotiateResponse:
        self.unary.append(f"negotiate {request.transfer}")
        return self.response(request)

    @unary_method
    async def Checksums(self, request: pb.ChecksumsRequest, context: Context) -> pb.ChecksumsResponse:
        if not self._serves_sessions:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        if self.refusal is not None:
            raise self.refusal
        return pb.ChecksumsResponse(ranks=[pb.RankChecksums(rank=3)])

    @unary_method
    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return pb.DescribeResponse()

    @unary_method
    async def Conclude(self, request: pb.ConcludeRequest, context: Context) -> pb.ConcludeResponse:
        self.unary.append(f"conclude {request.transfer}")
        return pb.ConcludeResponse()
