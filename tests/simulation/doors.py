"""The doors through which product code reaches the world: the clock, chance, and gRPC.

They are closed for a whole run, below everything that is imported, so that no code under test can get past them, also
code that is written later.
"""

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import Mock, patch

from grpc import aio

from kvferry_control import process
from kvferry_control.ranks import link
from tests.simulation.network import Network
from tests.simulation.rpc_client import SimChannel
from tests.simulation.rpc_server import SimServer
from tests.simulation.virtual_loop import CURRENT, VirtualLoop

EPOCH = 1_750_000_000.0
"""Wall clock at the start of every run, in seconds since the epoch."""


@contextmanager
def closed(loop: VirtualLoop, network: Network, seeded: random.Random) -> Iterator[None]:
    """Give code the loop's time, the seed's chance and the simulated network."""

    def wall() -> float:
        current = CURRENT.get()
        return EPOCH + loop.now + (current.clock.wall_offset if current is not None else 0.0)

    def channel(target: str, *_: Any, **__: Any) -> SimChannel:
        return SimChannel(network, target.removeprefix("ipv4:"))

    def server(*_: Any, **__: Any) -> SimServer:
        return SimServer(network)

    with ExitStack() as doors:
        for where, name, instead in (
            (time, "monotonic", loop.time),
            (time, "time", wall),
            # What `secrets` draws from; nothing else in the interpreter does.
            (random, "_urandom", seeded.randbytes),
            (aio, "insecure_channel", channel),
            (aio, "server", server),
            # A thread with a socket of its own; what it would tell nobody asks.
            (process, "open_health", Mock()),
            (link, "is_listened_to", lambda path: network.find(f"unix:{path}") is not None),
        ):
            doors.enter_context(patch.object(where, name, instead))
        yield
