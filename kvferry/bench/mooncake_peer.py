"""Mooncake's transfer engine over TCP, where its Python package is installed."""

import importlib
import os
import time
from collections.abc import Mapping
from typing import Any

from kvferry.bench.peers import PeerOptions, Unavailable, allocate_pool
from kvferry.bench.workload import BlockIds, Workload
from kvferry.core.errors import NotReady, TransportFailed

# By default it refuses batches of more than 1,024 blocks; this is the most that can be set.
_BATCH_BLOCKS_MAX = 65_535
_SETTINGS = {
    "MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": str(_BATCH_BLOCKS_MAX),
    "MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER": str(_BATCH_BLOCKS_MAX),
}


class MooncakePeer:
    """A transfer engine with a pool of its own."""

    def __init__(self, options: PeerOptions) -> None:
        """Raises Unavailable where the package is missing or does not work."""
        if options.device != "cpu":
            raise Unavailable("compared in host memory only")
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            engine = importlib.import_module("mooncake.engine")
        except ImportError as error:
            raise Unavailable(f"mooncake-transfer-engine: {error}") from error
        self._engine: Any = engine.TransferEngine()
        if status := self._engine.initialize(options.host, "P2PHANDSHAKE", "tcp", ""):
            raise Unavailable(f"mooncake-transfer-engine: initialize gave {status}")
        self.pool = allocate_pool(options.device, options.pool_bytes)
        self._address = self.pool.data_ptr()
        if status := self._engine.register_memory(self._address, options.pool_bytes):
            raise Unavailable(f"mooncake-transfer-engine: register_memory gave {status}")
        self.needs_progress = False
        self._host = options.host
        self._remote: Mapping[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Where the pool lies, and where its engine answers."""
        return {"address": self._address, "session": f"{self._host}:{self._engine.get_rpc_port()}"}

    def connect(self, described: Mapping[str, Any]) -> None:
        """Learn the other side."""
        self._remote = described

    def progress(self) -> None:
        """Nothing: it has threads of its own."""

    def read(self, workload: Workload) -> float:
        """Read a workload's blocks; seconds from address lists at hand to the last byte arrived.

        Raises:
            NotReady: it is not connected.
            TransportFailed: Mooncake reports an error.
        """
        if self._remote is None:
            raise NotReady("read before connect")
        size = workload.block_bytes
        ours = _addresses(workload.destination_blocks(), size, self._address)
        theirs = _addresses(workload.source_blocks(), size, self._remote["address"])
        starts = range(0, workload.block_count, _BATCH_BLOCKS_MAX)
        batches = [(ours[at : at + _BATCH_BLOCKS_MAX], theirs[at : at + _BATCH_BLOCKS_MAX]) for at in starts]
        started = time.perf_counter()
        for local, remote in batches:
            lengths = [size] * len(local)
            if status := self._engine.batch_transfer_sync_read(self._remote["session"], local, remote, lengths):
                raise TransportFailed(f"Mooncake's read gave {status}")
        return time.perf_counter() - started


def _addresses(blocks: BlockIds, block_bytes: int, base: int) -> list[int]:
    addresses: list[int] = (blocks * block_bytes + base).tolist()
    return addresses
