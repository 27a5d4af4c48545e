"""What the messages of a pull cost by themselves: processes that do nothing else pass them on, on a pull's way.

Six messages in a row, each to another process: engine, its control, the source's control and back, the data plane and
back, engine. What a pull takes beyond that is its own work.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Self

from kvferry.bench.hop_process import PLAIN, STREAM, Hop, open_hop
from kvferry.launch.child import Child

FLOORS = {"floor_plain": PLAIN, "floor_streams": STREAM}
"""By name: over plain sockets, as lanes are, and over gRPC streams."""
MESSAGE_BYTES_MIN = 400
"""About what a message of a pull has beside its block ids."""
_ID_BYTES = 4


class Floors:
    """The processes. An asynchronous context manager; ``calls`` by name are there once it is entered."""

    def __init__(self, directory: Path, block_count: int) -> None:
        self._directory = directory
        self._message = bytes(MESSAGE_BYTES_MIN + _ID_BYTES * block_count)
        self._stack = AsyncExitStack()
        self.calls: dict[str, Callable[[], Awaitable[object]]] = {}

    async def __aenter__(self) -> Self:
        """Start them.

        Raises:
            ProcessError: one did not start.
        """
        async with AsyncExitStack() as stack:
            for name, kind in FLOORS.items():
                self.calls[name] = partial(await self._chain(kind, stack), self._message)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _chain(self, kind: str, stack: AsyncExitStack) -> Hop:
        source = await self._start(kind, "source", [], stack)
        plane = await self._start(kind, "plane", [], stack)
        return await open_hop(kind, await self._start(kind, "control", [source, plane], stack), stack)

    async def _start(self, kind: str, name: str, via: list[Path], stack: AsyncExitStack) -> Path:
        path = self._directory / f"{kind}-{name}.sock"
        command = ["-m", "kvferry.bench.hop_process", "--kind", kind, "--socket", str(path)]
        for other in via:
            command += ["--via", str(other)]
        child = await Child.start(f"{kind}-{name}", command, self._directory / f"{kind}-{name}.log")
        stack.push_async_callback(child.stop)
        return path
