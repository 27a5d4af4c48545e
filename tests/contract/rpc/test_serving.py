"""Serving a stream whose messages take all that waits, over real gRPC."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from grpc import aio

from kvferry.core.errors import InvalidArgument, ResourceExhausted
from kvferry.negotiation.v1 import negotiation_pb2 as pb, negotiation_pb2_grpc
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.lanes import Lane, LaneServer, connect_lane
from kvferry.rpc.streams import Outgoing, StreamServer, carry_by


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no reason to go without a lane here."""
    monkeypatch.setattr("kvferry.rpc.lanes.OFFER_S", 5.0)


class Echo(negotiation_pb2_grpc.NegotiationServiceServicer):
    """Answers each call with its id; may hold two answers at a time."""

    def __init__(self, lanes: LaneServer) -> None:
        self.lanes = lanes

    async def Session(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Any
    ) -> None:
        outgoing: Outgoing[pb.SessionAnswer] = Outgoing(2)

        def handle(request: pb.SessionRequest) -> None:
            for call in request.calls:
                outgoing.put(pb.SessionAnswer(call_id=call.call_id))

        stream = StreamServer(pb.SessionRequest, handle, outgoing, lambda answers: pb.SessionResponse(answers=answers))
        await stream.serve(request_iterator, context, self.lanes)


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[LaneServer, Any]]:
    """A server, its lanes, and a stub of it."""
    with tempfile.TemporaryDirectory(prefix="kvf-") as folder:
        lanes = LaneServer(Path(folder) / "echo.lane")
        await lanes.start()
        address = f"unix:{Path(folder) / 'echo.sock'}"
        server = aio.server()
        negotiation_pb2_grpc.add_NegotiationServiceServicer_to_server(Echo(lanes), server)  # type: ignore[abstract]
        server.add_insecure_port(address)
        await server.start()
        async with aio.insecure_channel(address) as channel:
            yield lanes, negotiation_pb2_grpc.NegotiationServiceStub(channel)
        await server.stop(0)
        await lanes.close()


async def test_a_stream_ends_with_the_error_that_ended_it(caplog: pytest.LogCaptureFixture) -> None:
    """Answers come until a bound is passed; then the call ends with the typed error, and no defect is logged."""
    async with echo() as (_, stub):
        call = stub.Session()
        await call.write(request_of(5))
        answer = await call.read()
        assert isinstance(answer, pb.SessionResponse)
        assert [5] == [one.call_id for one in answer.answers]
        await call.write(request_of(0, 1, 2))
        with pytest.raises(grpc.RpcError) as caught:
            await read_to_the_end(call)
        assert isinstance(from_rpc(caught.value), ResourceExhausted)
    assert [] == [record for record in caplog.records if "Unexpected" in record.getMessage()]


async def read_to_the_end(call: Any) -> None:
    """Read until there is nothing more."""
    while await call.read() is not aio.EOF:
        continue


def request_of(*call_ids: int) -> pb.SessionRequest:
    """A message of calls."""
    return pb.SessionRequest(calls=[pb.SessionCall(call_id=number) for number in call_ids])


class Caller:
    """Calls by the lane of a stream, and what was answered."""

    def __init__(self, lane: Lane) -> None:
        self.outgoing: Outgoing[pb.SessionCall] = Outgoing(1_000)
        self.answers: asyncio.Queue[int] = asyncio.Queue()
        self.ended = asyncio.Event()
        carry_by(lane, self.outgoing, self._take, self.ended.set)

    def _take(self, frame: bytes) -> None:
        for answer in pb.SessionResponse.FromString(frame).answers:
            self.answers.put_nowait(answer.call_id)


async def test_a_lane_carries_the_messages_of_its_stream() -> None:
    """Calls of any size by the lane are answered by the lane, in their order, and the stream carries none of it."""
    async with asyncio.timeout(10), echo() as (_, stub):
        call = stub.Session()
        lane = await connect_lane(call)
        assert lane is not None
        caller = Caller(lane)
        handle = bytes(3 << 20)
        for number in range(1, 6):
            request = pb.NegotiateRequest(handle=handle if number == 2 else b"")
            caller.outgoing.put(pb.SessionCall(call_id=number, negotiate=request))
            assert number == await caller.answers.get()
        await call.done_writing()
        assert aio.EOF is await call.read()
        await caller.ended.wait()


def test_lanes_are_there_for_other_event_loops() -> None:
    """An engine may run on an event loop whose transports are none of asyncio's classes."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_a_lane_carries_the_messages_of_its_stream())


async def test_a_refusal_over_a_lane_ends_the_stream_with_its_status() -> None:
    """What ends the session while a lane carries it is told by the stream, as typed as without a lane."""
    async with asyncio.timeout(10), echo() as (_, stub):
        call = stub.Session()
        lane = await connect_lane(call)
        assert lane is not None
        caller = Caller(lane)
        lane.send([request_of(*range(9)).SerializeToString()])
        with pytest.raises(grpc.RpcError) as caught:
            await read_to_the_end(call)
        assert isinstance(from_rpc(caught.value), ResourceExhausted)
        await caller.ended.wait()


async def test_a_message_that_cannot_be_read_is_refused() -> None:
    """Bytes that are no message end the session as an invalid argument."""
    async with asyncio.timeout(10), echo() as (_, stub):
        call = stub.Session()
        lane = await connect_lane(call)
        assert lane is not None
        caller = Caller(lane)
        lane.send([b"\xff\xff\xff"])
        with pytest.raises(grpc.RpcError) as caught:
            await read_to_the_end(call)
        assert isinstance(from_rpc(caught.value), InvalidArgument)
        await caller.ended.wait()


async def test_the_end_of_a_lane_ends_its_stream() -> None:
    """A client that loses its lane hears the end of the stream, since the server has lost it as well."""
    async with asyncio.timeout(10), echo() as (_, stub):
        call = stub.Session()
        lane = await connect_lane(call)
        assert lane is not None
        caller = Caller(lane)
        lane.close()
        assert aio.EOF is await call.read()
        await caller.ended.wait()


async def test_without_a_lane_the_stream_carries_the_messages() -> None:
    """A client that cannot reach the lane's socket goes on by the stream."""
    async with asyncio.timeout(10), echo() as (lanes, stub):
        await lanes.close()
        call = stub.Session()
        assert await connect_lane(call) is None
        await call.write(request_of(5))
        answer = await call.read()
        assert isinstance(answer, pb.SessionResponse)
        assert [5] == [one.call_id for one in answer.answers]


@pytest.mark.parametrize("said", [b"", b"\x10\0\0\0" + bytes(16), b"\xff\xff\xff\x7f"])
async def test_a_stranger_is_turned_away(said: bytes) -> None:
    """Who connects without a token that was offered is disconnected, whatever is sent or not."""
    async with asyncio.timeout(10), echo() as (lanes, _):
        reader, writer = await asyncio.open_unix_connection(str(lanes.path))
        writer.write(said)
        assert b"" == await reader.read()
        writer.close()
        await writer.wait_closed()
