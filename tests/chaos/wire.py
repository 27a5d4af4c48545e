"""What the harness and an engine say to each other: one JSON object per line, over a Unix socket."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

LINE_BYTES_MAX = 1 << 20


class EngineGone(Exception):
    """The engine's process, or the connection to it, ended before it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOrder:
    """Fill blocks with the contents of ``seed`` and publish them."""

    seed: int
    token_count: int
    ttl_s: float
    readers: int
    reuse_early: bool = False
    """Write to the blocks when the lease's time is over by the engine's own clock, whatever it was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOrder:
    """Pull into poisoned blocks and compare with the contents of ``seed``."""

    handle: str
    """Hexadecimal."""
    seed: int
    token_count: int
    timeout_s: float
    priority: int = 0
    cancel_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A publication, or why there is none."""

    name: str = ""
    handle: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """How a pull ended, as the engine saw it."""

    state: str
    """succeeded, cancelled, failed; refused when this engine had no blocks or pool for it."""
    reason: str = ""
    message: str = ""
    transfer: str = ""
    path: str = ""
    wrong_bytes: int = 0
    settled: bool = True
    began_at: float = 0.0
    """On the machine's monotonic clock, like ``ended_at``."""
    ended_at: float = 0.0
    timeout_s: float = 0.0

    @property
    def late_s(self) -> float:
        """Seconds past its deadline; negative before it."""
        return self.ended_at - self.began_at - self.timeout_s


class EngineLink:
    """The harness's end of a connection to an engine. Make one with :meth:`open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tasks: asyncio.TaskGroup) -> None:
        self._reader, self._writer = reader, writer
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._gone = False
        self._receiving = tasks.create_task(self._receive())

    @classmethod
    async def open(cls, path: Path, tasks: asyncio.TaskGroup) -> "EngineLink":
        """Connect. Raises EngineGone."""
        try:
            return cls(*await asyncio.open_unix_connection(path, limit=LINE_BYTES_MAX), tasks)
        except OSError as error:
            raise EngineGone(str(path)) from error

    async def publish(self, order: PublishOrder) -> Published:
        """Raises EngineGone."""
        return Published(**await self._ask("publish", asdict(order)))

    async def pull(self, order: PullOrder) -> Pulled:
        """Raises EngineGone."""
        return Pulled(**await self._ask("pull", asdict(order)))

    async def release(self, name: str) -> str:
        """End a publication; why it did not, or nothing. Raises EngineGone."""
        return str((await self._ask("release", {"name": name}))["reason"])

    async def figures(self) -> dict[str, int]:
        """What the engine counts. Raises EngineGone."""
        figures: dict[str, int] = await self._ask("figures", {})
        return figures

    def close(self) -> None:
        """End the connection."""
        self._writer.close()
        self._receiving.cancel()

    async def _ask(self, what: str, order: Mapping[str, Any]) -> Any:
        if self._gone:
            raise EngineGone(what)
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(json.dumps({"number": number, "what": what, "order": order}).encode() + b"\n")
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def _receive(self) -> None:
        try:
            while line := await self._reader.readline():
                said = json.loads(line)
                answer = self._waiting.get(said["number"])
                if answer is not None and not answer.done():
                    answer.set_result(said["answer"])
        except OSError:
            pass
        finally:
            self._gone = True
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(EngineGone("the engine ended"))


Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


async def serve(path: Path, handlers: Mapping[str, Handler]) -> asyncio.Server:
    """Answer orders with ``handlers``, each in a task of its own; nothing may lie at ``path`` yet."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def answer(said: dict[str, Any]) -> None:
            done = await handlers[said["what"]](said["order"])
            writer.write(json.dumps({"number": said["number"], "answer": done}).encode() + b"\n")

        async with asyncio.TaskGroup() as tasks:
            while line := await reader.readline():
                tasks.create_task(answer(json.loads(line)))
        writer.close()

    return await asyncio.start_unix_server(connected, path, limit=LINE_BYTES_MAX)
