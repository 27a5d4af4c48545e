"""A process that does nothing but pass messages on: ``python -m kvferry.bench.hop_process``.

What comes from a client goes to each of the ``--via`` processes in turn, waits for its answer there, and back to the
client: over gRPC streams or over plain sockets.
"""

import argparse
import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from kvferry.rpc.lanes import Lane
from kvferry.rpc.options import channel_options, server_options

STREAM = "stream"
PLAIN = "plain"
_METHOD = "/kvferry.bench.Hop/Pass"

Hop = Callable[[bytes], Awaitable[bytes]]
"""Takes a message to another process and waits for its answer."""


async def open_hop(kind: str, path: Path, stack: AsyncExitStack) -> Hop:
    """A way to the process that serves at ``path``."""
    if kind == STREAM:
        channel = await stack.enter_async_context(aio.insecure_channel(f"unix:{path}", options=channel_options()))
        call: Any = channel.stream_stream(_METHOD)()
        stack.callback(call.cancel)

        async def by_stream(message: bytes) -> bytes:
            await call.write(message)
            answer: bytes = await call.read()
            return answer

        return by_stream
    loop = asyncio.get_running_loop()
    answers: asyncio.Queue[bytes] = asyncio.Queue(1)
    lane = await _connected(loop, path)
    stack.callback(lane.close)
    lane.begin(answers.put_nowait, lambda: None)

    async def by_socket(message: bytes) -> bytes:
        lane.send((message,))
        return await answers.get()

    return by_socket


async def _connected(loop: asyncio.AbstractEventLoop, path: Path) -> Lane:
    first: asyncio.Future[bytes] = loop.create_future()
    lane = Lane(lambda _, frame: first.set_result(frame))
    await loop.create_unix_connection(lambda: lane, str(path))
    lane.send((b"",))
    await first
    return lane


async def _serve_streams(path: Path, hops: list[Hop], stack: AsyncExitStack) -> None:
    async def passed(messages: AsyncIterator[bytes], context: Any) -> None:
        async for message in messages:
            for hop in hops:
                await hop(message)
            await context.write(message)

    server = aio.server(options=server_options())
    handler: Any = grpc.stream_stream_rpc_method_handler(passed)
    service, method = _METHOD[1:].split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    stack.push_async_callback(server.stop, None)


async def _serve_sockets(path: Path, hops: list[Hop], stack: AsyncExitStack) -> None:
    tasks = await stack.enter_async_context(asyncio.TaskGroup())

    async def passed(lane: Lane, message: bytes) -> None:
        for hop in hops:
            await hop(message)
        lane.send((message,))

    def begin(lane: Lane, _: bytes) -> None:
        lane.send((b"",))
        lane.begin(lambda message: _start(tasks, passed(lane, message)), lambda: None)

    server = await asyncio.get_running_loop().create_unix_server(lambda: Lane(begin), str(path))
    stack.callback(server.close)


def _start(tasks: asyncio.TaskGroup, work: Any) -> None:
    tasks.create_task(work)


async def _run(kind: str, path: Path, via: list[Path], ready_fd: int) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with AsyncExitStack() as stack:
        hops = [await open_hop(kind, other, stack) for other in via]
        await (_serve_streams if kind == STREAM else _serve_sockets)(path, hops, stack)
        os.write(ready_fd, json.dumps({}).encode() + b"\n")
        os.close(ready_fd)
        await stopping.wait()


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m kvferry.bench.hop_process", description=__doc__)
    parser.add_argument("--kind", choices=(STREAM, PLAIN), required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--via", type=Path, action="append", default=[])
    parser.add_argument("--ready-fd", type=int, required=True)
    flags = parser.parse_args()
    asyncio.run(_run(flags.kind, flags.socket, flags.via, flags.ready_fd))


if __name__ == "__main__":
    main()
