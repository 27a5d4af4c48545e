"""What the libraries that kvferry is compared with have in common: a pool, a peer, and a read of a workload."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kvferry.bench.workload import Workload
from kvferry.device.memfd import create_shared_memory

NIXL_DEFAULT = "raw_nixl_default"
"""NIXL with its own defaults: a progress thread that spins."""
NIXL_TUNED = "raw_nixl_tuned"
"""NIXL as kvferry's data plane uses it: its settings, no progress thread."""
MOONCAKE = "mooncake"
"""Mooncake's transfer engine over TCP."""
STREAM = "ceiling_tcp_stream"
"""One TCP socket and nothing else."""


class Unavailable(Exception):
    """A library that cannot be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """Of one side."""

    name: str
    device: str
    pool_bytes: int
    host: str
    """Address that it serves at."""


class Peer(Protocol):
    """One side: both sides are made alike, then the destination is connected to what the source describes."""

    pool: torch.Tensor
    needs_progress: bool
    """Whether it serves the other side only while :meth:`progress` is called."""

    def describe(self) -> Mapping[str, Any]:
        """What the other side needs to know, as JSON holds it."""
        ...

    def connect(self, described: Mapping[str, Any]) -> None:
        """Learn the other side."""
        ...

    def read(self, workload: Workload) -> float:
        """Read a workload from the other side; seconds from descriptors at hand to the last byte arrived.

        Raises:
            TransportFailed: the library reports an error.
        """
        ...

    def progress(self) -> None:
        """Serve the other side, where nothing else does. Called without a pause while no command is carried out."""
        ...


PeerFactory = Callable[[PeerOptions], Peer]


def allocate_pool(device: str, pool_bytes: int) -> torch.Tensor:
    """Memory like that of a data plane's pool, as bytes."""
    if device != "cpu":
        return torch.zeros(pool_bytes, dtype=torch.uint8, device=device)
    memory = create_shared_memory("kvferry-bench", pool_bytes)
    return torch.frombuffer(memory.mapping, dtype=torch.uint8)
