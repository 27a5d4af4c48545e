"""Connecting over a network that takes its time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kvferry.rpc.options import channel_options, server_options

ONE_WAY_S = 0.2


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes on, each ``ONE_WAY_S`` after it came, and then the end, of whatever kind."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionResetError):
        while data := await reader.read(1 << 16):
            loop.call_later(ONE_WAY_S, writer.write, data)
    await asyncio.sleep(ONE_WAY_S)
    writer.close()
    with suppress(ConnectionResetError, BrokenPipeError):
        await writer.wait_closed()


@asynccontextmanager
async def far_away(port: int) -> AsyncIterator[int]:
    """A port through which another one of this host is reached as over a long distance.

    Leave it when its clients have closed their connections: it waits until they have ended on both sides.
    """

    async def carried(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as both:
            both.create_task(_carry(reader, there_writer))
            both.create_task(_carry(there_reader, writer))

    async with asyncio.TaskGroup() as connections:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.create_task(carried(reader, writer))

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]


async def test_a_distant_server_is_reached_at_once() -> None:
    """A server whose first word takes longer than the pause between two attempts is connected to all the same."""
    server = aio.server(options=server_options())
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        far_away(port) as distant,
        aio.insecure_channel(f"127.0.0.1:{distant}", options=channel_options()) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
    await server.stop(0)
