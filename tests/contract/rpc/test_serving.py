"""Serving a stream whose messages take all that waits, over real gRPC."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from kvferry.core.errors import ResourceExhausted
from kvferry.negotiation.v1 import negotiation_pb2 as pb, negotiation_pb2_grpc
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.streams import Outgoing, serve_batches


class Echo(negotiation_pb2_grpc.NegotiationServiceServicer):
    """Answers each call with its id; may hold two answers at a time."""

    async def Session(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Any
    ) -> None:
        outgoing: Outgoing[pb.SessionAnswer] = Outgoing(2)

        def handle(request: pb.SessionRequest) -> None:
            for call in request.calls:
                outgoing.put(pb.SessionAnswer(call_id=call.call_id))

        await serve_batches(
            request_iterator, context, handle, outgoing, lambda answers: pb.SessionResponse(answers=answers)
        )


async def test_a_stream_ends_with_the_error_that_ended_it(caplog: pytest.LogCaptureFixture) -> None:
    """Answers come until a bound is passed; then the call ends with the typed error, and no defect is logged."""
    with tempfile.TemporaryDirectory(prefix="kvf-") as folder:
        address = f"unix:{Path(folder) / 'echo.sock'}"
        server = aio.server()
        negotiation_pb2_grpc.add_NegotiationServiceServicer_to_server(Echo(), server)  # type: ignore[abstract]
        server.add_insecure_port(address)
        await server.start()
        async with aio.insecure_channel(address) as channel:
            call = negotiation_pb2_grpc.NegotiationServiceStub(channel).Session()
            await call.write(pb.SessionRequest(calls=[pb.SessionCall(call_id=5)]))
            answer = await call.read()
            assert isinstance(answer, pb.SessionResponse)
            assert [5] == [one.call_id for one in answer.answers]
            await call.write(pb.SessionRequest(calls=[pb.SessionCall(call_id=n) for n in range(3)]))
            with pytest.raises(grpc.RpcError) as caught:
                await read_to_the_end(call)
            assert isinstance(from_rpc(caught.value), ResourceExhausted)
        await server.stop(0)
    assert [] == [record for record in caplog.records if "Unexpected" in record.getMessage()]


async def read_to_the_end(call: Any) -> None:
    """Read until there is nothing more."""
    while await call.read() is not aio.EOF:
        continue
