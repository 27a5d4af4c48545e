"""gRPC's channels over the simulated network: what generated stubs need of ``grpc.aio``."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc
from grpc import aio

from tests.simulation.inbox import OK, Inbox, Status, failure, this_process
from tests.simulation.network import CONNECT_SECONDS, KEEPALIVE_SECONDS, Connection, Network, Pipe
from tests.simulation.rpc_server import Metadata, ServerCall

CONNECT_PAUSE_SECONDS = 0.05


class ClientCall:
    """A client's end of a call."""

    def __init__(
        self, channel: "SimChannel", path: str, codec: "Codec", timeout: float | None, metadata: Metadata
    ) -> None:
        self._channel = channel
        self._codec = codec
        self._network = channel.network
        self._inbox = Inbox()
        self._cancelled = False
        self._deadline: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        if timeout is not None:
            late = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())
            self._deadline = loop.call_later(max(timeout, 0.0), self._end_early, late)
        self._connection, self._pipe = self._connect(path, timeout, metadata)

    def _connect(self, path: str, timeout: float | None, metadata: Metadata) -> tuple[Connection, Pipe]:
        network, client = self._network, this_process()
        server = network.find(self._channel.target)
        connection = Connection(path, client, server.process if server else client, (self,))
        network.open(connection)
        if server is None:
            network.later(network.delay(client, client), lambda: network.break_now(connection, "connection refused"))
            return connection, Pipe(network, connection, to_server=True, arrived=lambda _: None)
        process = server.process
        if network.is_cut(client, process):
            self._give_up_after(CONNECT_SECONDS, connection, lambda: network.is_cut(client, process))
        if process.is_stopped(network.loop.now):
            self._give_up_after(KEEPALIVE_SECONDS, connection, lambda: process.is_stopped(network.loop.now))
        end = ServerCall(server, path, connection, self._inbox, timeout, metadata)
        connection.ends = (self, end)
        pipe = Pipe(network, connection, to_server=True, arrived=end.inbox.put)
        pipe.do(end.begin)
        return connection, pipe

    def _give_up_after(self, seconds: float, connection: Connection, still: Callable[[], bool]) -> None:
        def look() -> None:
            if still():
                self._network.break_connection(connection, "connect timed out")

        self._network.later(seconds, look)

    def broke(self, why: str) -> None:
        """The connection has gone."""
        self._inbox.end((grpc.StatusCode.UNAVAILABLE, why, ()))

    def done(self) -> bool:
        """Whether it has ended."""
        return self._inbox.status is not None

    def cancel(self) -> bool:
        """End it."""
        if self.done():
            return False
        self._cancelled = True
        self._end_early((grpc.StatusCode.CANCELLED, "Locally cancelled by application!", ()))
        return True

    async def details(self) -> str:
        """Why it ended."""
        while self._inbox.status is None:
            await self._inbox.changed()
        return self._inbox.status[1]

    async def initial_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """gRPC's; no lane is offered."""
        return ()

    async def write(self, message: Any) -> None:
        """Send a message."""
        if self.done():
            raise asyncio.InvalidStateError("RPC already finished.")
        self._pipe.send(self._codec.encode(message))
        await self._pipe.room()
        if self.done():
            self._raise()

    async def done_writing(self) -> None:
        """Half-close."""
        end = self._connection.ends[-1]
        if isinstance(end, ServerCall):
            self._pipe.do(lambda: end.inbox.end(OK))

    async def read(self) -> Any:
        """The next message, or EOF."""
        try:
            message = await self._inbox.take()
        except asyncio.CancelledError:
            # As gRPC has it: who is cancelled while it reads cancels the call.
            self.cancel()
            raise
        if message is not None:
            return self._codec.decode(message)
        if self._inbox.status is not None and self._inbox.status[0] is not grpc.StatusCode.OK:
            self._raise()
        return aio.EOF

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not aio.EOF:
            yield message

    async def only(self, request: Any) -> Any:
        """Ask and wait for the one answer."""
        self._pipe.send(self._codec.encode(request))
        try:
            answer = await self.read()
            if answer is aio.EOF:
                raise failure((grpc.StatusCode.INTERNAL, "no answer", ()))
            return answer
        finally:
            self.finish()

    def finish(self) -> None:
        """Nothing more is wanted of it."""
        if self._deadline is not None:
            self._deadline.cancel()

    def _raise(self) -> NoReturn:
        if self._cancelled:
            raise asyncio.CancelledError
        assert self._inbox.status is not None
        raise failure(self._inbox.status)

    def _end_early(self, status: Status) -> None:
        if self.done():
            return
        end = self._connection.ends[-1]
        if isinstance(end, ServerCall) and not self._connection.closed:
            self._pipe.do(end.cancel)
        self._inbox.end(status)
        self.finish()


class Codec:
    """How messages of a method become bytes and back, at a client."""

    def __init__(self, serializer: Callable[[Any], bytes] | None, deserializer: Callable[[bytes], Any] | None) -> None:
        self._serializer = serializer
        self._deserializer = deserializer

    def encode(self, message: Any) -> bytes:
        """To bytes."""
        return self._serializer(message) if self._serializer is not None else message

    def decode(self, data: bytes) -> Any:
        """From bytes."""
        return self._deserializer(data) if self._deserializer is not None else data


class SimChannel:
    """What ``grpc.aio.insecure_channel`` gives."""

    def __init__(self, network: Network, target: str) -> None:
        self.network = network
        self.target = target
        self._calls: list[ClientCall] = []

    def unary_unary(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """A method with one request and one answer."""
        codec = Codec(request_serializer, response_deserializer)

        async def ask(
            request: Any,
            *,
            timeout: float | None = None,  # noqa: ASYNC109
            metadata: object = None,
            wait_for_ready: bool | None = None,
        ) -> Any:
            loop = asyncio.get_running_loop()
            until = loop.time() + (timeout or 0.0)
            if wait_for_ready:
                await self._reachable(until)
            left = None if timeout is None else until - loop.time()
            return await self._call(path, codec, left).only(request)

        return ask

    def unary_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """A method with one request and a stream of answers."""
        codec = Codec(request_serializer, response_deserializer)

        def ask(request: Any, *, timeout: float | None = None, metadata: object = None) -> ClientCall:
            call = self._call(path, codec, timeout)
            call._pipe.send(codec.encode(request))
            return call

        return ask

    def stream_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """A method with streams both ways."""
        codec = Codec(request_serializer, response_deserializer)
        return lambda *, timeout=None, metadata=(): self._call(path, codec, timeout, metadata)

    async def close(self, grace: float | None = None) -> None:
        """End every call; they are given up at once, whatever the grace."""
        for call in self._calls:
            call.cancel()
        self._calls.clear()

    async def _reachable(self, until: float) -> None:
        """Wait for a server; as gRPC does, in steps."""
        loop = asyncio.get_running_loop()
        while True:
            if self._is_reachable() or loop.time() >= until:
                return
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)

    def _is_reachable(self) -> bool:
        server = self.network.find(self.target)
        return server is not None and not self.network.is_cut(this_process(), server.process)

    def _call(self, path: str, codec: Codec, timeout: float | None, metadata: Metadata = ()) -> ClientCall:
        self._calls = [call for call in self._calls if not call.done()]
        call = ClientCall(self, path, codec, timeout, metadata)
        self._calls.append(call)
        return call
