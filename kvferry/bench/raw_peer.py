"""One side of the raw NIXL yardstick, as a process: ``python -m kvferry.bench.raw_peer``.

It takes commands as JSON lines over a Unix socket from the one process that connects, and ends when that goes away.
"""

import argparse
import json
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvferry.bench.memory import fill, first_wrong_block, poison
from kvferry.bench.raw_agent import RawAgent, RemotePool
from kvferry.bench.workload import Workload
from kvferry.core.errors import NotReady

PROGRESS_INTERVAL_S = 0.001
_RECEIVE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    name: str
    device: str
    pool_bytes: int
    socket: Path
    default_config: bool
    ready_fd: int


class RawPeer:
    """Carries out the commands."""

    def __init__(self, agent: RawAgent) -> None:
        self._agent = agent
        self._remote: RemotePool | None = None

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to one command; ``op`` names it."""
        match command["op"]:
            case "describe":
                agent = self._agent
                described = {"address": agent.address, "device_index": agent.device_index}
                return {**described, "metadata": agent.metadata().hex()}
            case "connect":
                peer = self._agent.add_peer(bytes.fromhex(command["metadata"]))
                self._remote = RemotePool(peer, command["address"], command["device_index"])
                return {}
            case "fill":
                fill(self._agent.pool, command["seed"])
                return {}
            case "poison":
                poison(self._agent.pool)
                return {}
            case "read":
                if self._remote is None:
                    raise NotReady("read before connect")
                return {"seconds": self._agent.read(Workload(**command["workload"]), self._remote)}
            case "verify":
                workload = Workload(**command["workload"])
                return {"wrong_block": first_wrong_block(self._agent.pool, workload, command["seed"])}
        raise NotImplementedError(command["op"])


def main() -> None:
    """Serve until the other end closes."""
    options = _options()
    agent = RawAgent(options.name, options.device, options.pool_bytes, default_config=options.default_config)
    peer = RawPeer(agent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(options.socket))
        listener.listen(1)
        os.write(options.ready_fd, b"ready\n")
        os.close(options.ready_fd)
        connection, _ = listener.accept()
    with connection:
        for line in _lines(connection, agent):
            connection.sendall(json.dumps(peer.answer(json.loads(line))).encode() + b"\n")


def _lines(connection: socket.socket, agent: RawAgent) -> Iterator[bytes]:
    """Lines as they come; between them the agent makes progress."""
    received = b""
    while True:
        readable, _, _ = select.select([connection], [], [], PROGRESS_INTERVAL_S)
        if not readable:
            agent.progress()
            continue
        chunk = connection.recv(_RECEIVE_BYTES)
        if not chunk:
            return
        received += chunk
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            yield line


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m kvferry.bench.raw_peer", description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--pool-bytes", type=int, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--default-config", action="store_true")
    parser.add_argument("--ready-fd", type=int, required=True)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
