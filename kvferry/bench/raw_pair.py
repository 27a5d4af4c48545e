"""Two raw NIXL processes, driven from here. Frozen whenever they are not measured: NIXL's own threads spin."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from kvferry.bench.workload import Workload
from kvferry.core.errors import TransportFailed
from kvferry.launch.child import Child
from kvferry.launch.concurrently import all_of

CALL_TIMEOUT_S = 120.0


class RawSide:
    """One of the processes."""

    def __init__(self, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.child = child
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, name: str, device: str, pool_bytes: int, directory: Path, *, default_config: bool) -> Self:
        """Start the process and connect to it. Raises ProcessError."""
        path = directory / f"{name}.sock"
        command = ["-m", "kvferry.bench.raw_peer", "--name", name, "--device", device]
        command += ["--pool-bytes", str(pool_bytes), "--socket", str(path)]
        if default_config:
            command.append("--default-config")
        child = await Child.start(name, command, directory / f"{name}.log")
        return cls(child, *await asyncio.open_unix_connection(str(path)))

    async def call(self, op: str, **arguments: object) -> dict[str, Any]:
        """Have it carry out a command.

        Raises:
            ProcessEnded: it died over it.
        """
        self._writer.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        async with asyncio.timeout(CALL_TIMEOUT_S):
            line = await self._reader.readline()
            if not line:
                await self.child.wait()
                self.child.check_running()
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        """End the process."""
        self._writer.close()
        await self.child.stop()


class RawPair:
    """A source and a destination. Between :meth:`thaw` and :meth:`freeze` they run."""

    def __init__(self, source: RawSide, destination: RawSide) -> None:
        self._source = source
        self._destination = destination

    @classmethod
    async def start(
        cls, name: str, device: str, pool_bytes: int, seed: int, directory: Path, *, default_config: bool
    ) -> Self:
        """Start both, connected and frozen; the source's pool holds the noise of ``seed``."""
        source, destination = await all_of(
            RawSide.start(f"{name}-{side}", device, pool_bytes, directory, default_config=default_config)
            for side in ("source", "destination")
        )
        pair = cls(source, destination)
        await destination.call("connect", **await source.call("describe"))
        await source.call("fill", seed=seed)
        pair.freeze()
        return pair

    def freeze(self) -> None:
        """Stop both processes where they are."""
        self._source.child.pause()
        self._destination.child.pause()

    def thaw(self) -> None:
        """Let both go on."""
        self._source.child.resume()
        self._destination.child.resume()

    async def read(self, workload: Workload) -> float:
        """Read a workload; seconds as the destination measured them."""
        self.thaw()
        answer = await self._destination.call("read", workload=asdict(workload))
        self.freeze()
        return float(answer["seconds"])

    async def read_verified(self, workload: Workload, seed: int) -> None:
        """Read a workload into poisoned memory and compare every byte.

        Raises:
            TransportFailed: a block is wrong.
        """
        self.thaw()
        await self._destination.call("poison")
        await self._destination.call("read", workload=asdict(workload))
        answer = await self._destination.call("verify", workload=asdict(workload), seed=seed)
        self.freeze()
        if answer["wrong_block"] is not None:
            raise TransportFailed(f"raw NIXL: destination block {answer['wrong_block']} is wrong")

    async def stop(self) -> None:
        """End both processes."""
        await all_of([self._source.stop(), self._destination.stop()])
