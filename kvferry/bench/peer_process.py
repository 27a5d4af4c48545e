"""One side of a library that kvferry is compared with, as a process: ``python -m kvferry.bench.peer_process``.

It takes commands as JSON lines over a Unix socket from the one process that connects, and ends when that goes away.
"""

import argparse
import json
import os
import select
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kvferry.bench.memory import fill, first_wrong_block, poison
from kvferry.bench.mooncake_peer import MooncakePeer
from kvferry.bench.nixl_peer import NixlPeer
from kvferry.bench.peers import MOONCAKE, NIXL_DEFAULT, NIXL_TUNED, STREAM, Peer, PeerFactory, PeerOptions, Unavailable
from kvferry.bench.stream_peer import StreamPeer
from kvferry.bench.workload import Workload

_RECEIVE_BYTES = 64 * 1024

LIBRARIES: Mapping[str, PeerFactory] = {
    NIXL_DEFAULT: partial(NixlPeer, default_config=True),
    NIXL_TUNED: partial(NixlPeer, default_config=False),
    MOONCAKE: MooncakePeer,
    STREAM: StreamPeer,
}


def answer(peer: Peer, command: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer to one command; ``op`` names it."""
    match command["op"]:
        case "describe":
            return peer.describe()
        case "connect":
            peer.connect(command["described"])
            return {}
        case "fill":
            fill(peer.pool, command["seed"])
            return {}
        case "poison":
            poison(peer.pool)
            return {}
        case "read":
            return {"seconds": peer.read(Workload(**command["workload"]))}
        case "verify":
            return {"wrong_block": first_wrong_block(peer.pool, Workload(**command["workload"]), command["seed"])}
    raise NotImplementedError(command["op"])


def main() -> None:
    """Serve until the other end closes; a library that cannot be used says so instead of being ready."""
    flags = _parser().parse_args()
    options = PeerOptions(flags.name, flags.device, flags.pool_bytes, flags.host)
    try:
        peer = LIBRARIES[flags.library](options)
    except Unavailable as error:
        _say(flags.ready_fd, {"unavailable": str(error)})
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(flags.socket))
        listener.listen(1)
        _say(flags.ready_fd, {})
        connection, _ = listener.accept()
    with connection:
        for line in _lines(connection, peer):
            connection.sendall(json.dumps(answer(peer, json.loads(line))).encode() + b"\n")


def _say(ready_fd: int, said: Mapping[str, str]) -> None:
    os.write(ready_fd, json.dumps(said).encode() + b"\n")
    os.close(ready_fd)


def _lines(connection: socket.socket, peer: Peer) -> Iterator[bytes]:
    """Lines as they come; between them the peer makes progress."""
    received = b""
    # Over TCP the target has a part in every read: pauses here would be pauses of the read.
    pause_s = 0.0 if peer.needs_progress else None
    while True:
        readable, _, _ = select.select([connection], [], [], pause_s)
        if not readable:
            peer.progress()
            continue
        chunk = connection.recv(_RECEIVE_BYTES)
        if not chunk:
            return
        received += chunk
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            yield line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kvferry.bench.peer_process", description=__doc__)
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--pool-bytes", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    return parser


if __name__ == "__main__":
    main()
