"""Two processes of a library that kvferry is compared with, driven from here.

They are frozen whenever they are not measured: NIXL's own threads spin.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from kvferry.bench.network import Network, Side
from kvferry.bench.peers import STREAM, Unavailable
from kvferry.bench.workload import CONTIGUOUS, Workload
from kvferry.core.errors import TransportFailed
from kvferry.launch.child import Child
from kvferry.launch.concurrently import all_of

CALL_TIMEOUT_S = 120.0


class PeerSide:
    """One of the processes."""

    def __init__(self, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.child = child
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(
        cls, name: str, arguments: list[str], directory: Path, side: Side, environment: Mapping[str, str]
    ) -> Self:
        """Start the process and connect to it.

        Raises:
            ProcessError: it did not start.
            Unavailable: the library cannot be used here.
        """
        path = directory / f"{name}.sock"
        command = ["-m", "kvferry.bench.peer_process", "--name", name, *arguments]
        command += ["--host", side.address, "--socket", str(path)]
        log = directory / f"{name}.log"
        child = await Child.start(name, command, log, environment=environment, launcher=side.launcher)
        if (reason := child.ready.get("unavailable")) is not None:
            await child.stop()
            raise Unavailable(str(reason))
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


class PeerPair:
    """A source and a destination of one library. Between :meth:`thaw` and :meth:`freeze` they run."""

    def __init__(self, library: str, source: PeerSide, destination: PeerSide) -> None:
        self.library = library
        self._source = source
        self._destination = destination

    @classmethod
    async def start(
        cls,
        library: str,
        name: str,
        devices: tuple[str, str],
        pool_bytes: int,
        seed: int,
        directory: Path,
        network: Network,
    ) -> Self:
        """Start both, connected and frozen; the source's pool holds the noise of ``seed``.

        Their pools lie on ``devices``, the source's first; ``name`` tells them from others of the library.

        Raises:
            ProcessError: one did not start.
            Unavailable: the library cannot be used here.
        """
        # One after the other: that a library is missing is no reason to have the other half cancelled in its start.
        source, destination = [
            await PeerSide.start(
                f"{name}-{role}",
                ["--library", library, "--device", device, "--pool-bytes", str(pool_bytes)],
                directory,
                side,
                network.transports,
            )
            for role, device, side in (
                ("source", devices[0], network.source),
                ("destination", devices[1], network.destination),
            )
        ]
        pair = cls(library, source, destination)
        await destination.call("connect", described=await source.call("describe"))
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
        answer = await self._destination.call("read", workload=self._carried(workload))
        self.freeze()
        return float(answer["seconds"])

    async def read_verified(self, workload: Workload, seed: int) -> None:
        """Read a workload into poisoned memory and compare every byte.

        Raises:
            TransportFailed: a block is wrong.
        """
        carried = self._carried(workload)
        self.thaw()
        await self._destination.call("poison")
        await self._destination.call("read", workload=carried)
        answer = await self._destination.call("verify", workload=carried, seed=seed)
        self.freeze()
        if answer["wrong_block"] is not None:
            raise TransportFailed(f"{self.library}: destination block {answer['wrong_block']} is wrong")

    def _carried(self, workload: Workload) -> dict[str, Any]:
        # A stream knows no blocks.
        return asdict(replace(workload, order=CONTIGUOUS) if self.library == STREAM else workload)

    async def stop(self) -> None:
        """End both processes."""
        await all_of([self._source.stop(), self._destination.stop()])
