"""gRPC's servers over the simulated network: what generated servicers need of ``grpc.aio``."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import grpc
from grpc import aio

from tests.simulation.inbox import OK, Inbox, Status, this_process
from tests.simulation.network import Connection, Network, Pipe

Metadata = tuple[tuple[str, str], ...]


class ServerCall:
    """A server's end of a call, which is also the context of its handler."""

    def __init__(
        self,
        server: "SimServer",
        path: str,
        connection: Connection,
        client: Inbox,
        timeout: float | None,
        metadata: Metadata,
    ) -> None:
        self.inbox = Inbox()
        self._metadata = metadata
        self._server = server
        self._handler = server.handlers.get(path)
        self._connection = connection
        self._client = client
        self._timeout = timeout
        self._pipe = Pipe(server.network, connection, to_server=False, arrived=client.put)
        self._task: asyncio.Task[None] | None = None
        self._ends_at: float | None = None
        self._aborted: Status | None = None

    def begin(self) -> None:
        """The call has arrived."""
        process = self._server.process
        if process.alive:
            self._task = self._server.network.loop.start(process, self._serve())
            self._server.began(self)

    def broke(self, why: str) -> None:
        """The connection has gone."""
        self.cancel()

    def cancel(self) -> None:
        """The client wants nothing more."""
        self.inbox.end((grpc.StatusCode.CANCELLED, "", ()))
        if self._task is not None and not self._task.done():
            self._server.process.context.run(self._task.cancel)
        self._server.network.close(self._connection)

    # The context

    async def write(self, message: Any) -> None:
        """Send a message; into the void, if the connection broke and nobody has noticed yet."""
        assert self._handler is not None
        self._pipe.send(self._handler.response_serializer(message))
        await self._pipe.room()

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """End the call with an error."""
        self._aborted = (code, details, trailing_metadata)
        raise aio.AbortError

    def invocation_metadata(self) -> Metadata:
        """The client's."""
        return self._metadata

    async def send_initial_metadata(self, metadata: object) -> None:
        """gRPC's; lost here, so that no client takes a lane: what they carry, the stream does."""

    def time_remaining(self) -> float | None:
        """Until the client's deadline."""
        return None if self._ends_at is None else self._ends_at - asyncio.get_running_loop().time()

    async def _serve(self) -> None:
        if self._timeout is not None:
            self._ends_at = asyncio.get_running_loop().time() + self._timeout
        status: Status = OK
        try:
            if self._handler is None or not self._server.serving:
                status = (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", ())
            else:
                await self._handle(self._handler)
        except aio.AbortError:
            status = self._aborted or OK
        except asyncio.CancelledError:
            return
        except Exception as error:
            self._server.network.loop.defect(f"a handler raised {error!r}")
            status = (grpc.StatusCode.UNKNOWN, repr(error), ())
        finally:
            self._server.ended(self)
        self._pipe.do(lambda: self._finish(status))

    async def _handle(self, handler: Any) -> None:
        if handler.request_streaming:
            result = handler.stream_stream(self._requests(), self)
            if hasattr(result, "__aiter__"):
                async for message in result:
                    await self.write(message)
            else:
                await result
            return
        data = await self.inbox.take()
        if data is None:
            raise asyncio.CancelledError
        request = handler.request_deserializer(data)
        if handler.response_streaming:
            async for message in handler.unary_stream(request, self):
                await self.write(message)
        else:
            self._pipe.send(handler.response_serializer(await handler.unary_unary(request, self)))

    async def _requests(self) -> AsyncIterator[Any]:
        assert self._handler is not None
        while (data := await self.inbox.take()) is not None:
            yield self._handler.request_deserializer(data)

    def _finish(self, status: Status) -> None:
        self._client.end(status)
        self._server.network.close(self._connection)


class SimServer:
    """What ``grpc.aio.server`` gives."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.process = this_process()
        self.handlers: dict[str, Any] = {}
        self.serving = False
        self.running: dict[ServerCall, None] = {}
        self._addresses: list[str] = []
        self._idle = asyncio.Event()
        self._idle.set()

    def began(self, call: ServerCall) -> None:
        """A call is being handled."""
        self.running[call] = None
        self._idle.clear()

    def ended(self, call: ServerCall) -> None:
        """It is no more."""
        self.running.pop(call, None)
        if not self.running:
            self._idle.set()

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Serve the methods of a service."""
        self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same methods again, in the form that older versions need."""

    def add_insecure_port(self, address: str) -> int:
        """Where it will listen."""
        self._addresses.append(address)
        return 1

    async def start(self) -> None:
        """Listen."""
        self.serving = True
        for address in self._addresses:
            self.network.listen(address, self)

    async def stop(self, grace: float | None) -> None:
        """Listen no more, and end all calls once the grace is over."""
        if not self.serving:
            return
        self.serving = False
        for address in self._addresses:
            self.network.unlisten(address, self)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
        for call in list(self.running):
            self.network.break_now(call._connection, "server stopped")
