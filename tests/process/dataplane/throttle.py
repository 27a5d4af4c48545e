"""A wire that can be made slow: connections to an address go through here."""

import asyncio
import time
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 << 10


class Throttle:
    """Passes TCP on to `host:port`, in either direction, at most at ``bytes_per_s`` once that is set."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self.bytes_per_s: float | None = None
        self.endpoint = ""
        """Where it listens."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection(self._host, self._port)
        async with asyncio.TaskGroup() as ways:
            ways.create_task(self._pass_on(reader, onward_writer))
            ways.create_task(self._pass_on(onward_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                due = time.monotonic() + (len(data) / self.bytes_per_s if self.bytes_per_s else 0.0)
                writer.write(data)
                await writer.drain()
                if due > time.monotonic():
                    await asyncio.sleep(due - time.monotonic())
        except ConnectionError:
            # Either end may go at any time; the other learns of it here.
            pass
        finally:
            writer.close()
