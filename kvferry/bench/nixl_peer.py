"""Plain NIXL, used as its examples do: the yardstick. No leases, no control, no batches, no deadline."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvferry.bench.peers import PeerOptions, allocate_pool
from kvferry.bench.workload import BlockIds, Workload
from kvferry.core.errors import NotReady, TransportFailed
from kvferry.device import cuda
from kvferry_dataplane.nixl_agent import NixlLibrary


@dataclass(frozen=True, slots=True)
class RemotePool:
    """The other side's memory."""

    peer: str
    address: int
    device_index: int


class NixlPeer:
    """A NIXL agent with a pool of its own.

    With ``default_config`` it is made with NIXL's own defaults (a progress thread that spins), else without a
    progress thread, as kvferry's data plane makes its agents.
    """

    def __init__(self, options: PeerOptions, *, default_config: bool) -> None:
        on_cuda = options.device.startswith("cuda")
        with _without_new_settings(default_config):
            api = NixlLibrary.with_ucx(for_cuda=on_cuda, cuda_major=cuda.bindings_major()).api
        # NIXL's default backend list is this one; it is named so that both sides surely agree.
        backends = ["UCX"]
        config = (
            api.nixl_agent_config(backends=backends)
            if default_config
            else api.nixl_agent_config(enable_prog_thread=False, backends=backends)
        )
        self.pool = allocate_pool(options.device, options.pool_bytes)
        self._agent: Any = api.nixl_agent(options.name, config)
        self._segment = "VRAM" if on_cuda else "DRAM"
        self._device_index = (self.pool.device.index or 0) if on_cuda else 0
        self._address = self.pool.data_ptr()
        self.needs_progress = not default_config
        self._remote: RemotePool | None = None
        row = [(self._address, options.pool_bytes, self._device_index, "")]
        self._agent.register_memory(row, self._segment)

    def describe(self) -> dict[str, Any]:
        """Where the pool lies, and the agent's metadata."""
        metadata: bytes = self._agent.get_agent_metadata()
        return {"address": self._address, "device_index": self._device_index, "metadata": metadata.hex()}

    def connect(self, described: Mapping[str, Any]) -> None:
        """Learn the other side."""
        name = self._agent.add_remote_agent(bytes.fromhex(described["metadata"]))
        peer = name.decode() if isinstance(name, bytes) else str(name)
        self._remote = RemotePool(peer, described["address"], described["device_index"])

    def progress(self) -> None:
        """Serve the other side where no progress thread does."""
        self._agent.get_new_notifs()

    def read(self, workload: Workload) -> float:
        """Read a workload's blocks; seconds from descriptor rows at hand to the last byte arrived.

        Raises:
            NotReady: it is not connected.
            TransportFailed: NIXL reports an error.
        """
        if self._remote is None:
            raise NotReady("read before connect")
        agent, remote = self._agent, self._remote
        theirs = _rows(workload.source_blocks(), workload.block_bytes, remote.address, remote.device_index)
        ours = _rows(workload.destination_blocks(), workload.block_bytes, self._address, self._device_index)
        started = time.perf_counter()
        handle = agent.initialize_xfer(
            "READ",
            agent.get_xfer_descs(ours, self._segment),
            agent.get_xfer_descs(theirs, self._segment),
            remote.peer,
        )
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        seconds = time.perf_counter() - started
        agent.release_xfer_handle(handle)
        if state != "DONE":
            raise TransportFailed(f"raw NIXL read ended as {state}")
        return seconds


@contextlib.contextmanager
def _without_new_settings(wanted: bool) -> Iterator[None]:
    """Take back, if ``wanted``, what kvferry sets for UCX when it loads NIXL."""
    before = dict(os.environ)
    yield
    if wanted:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _rows(blocks: BlockIds, block_bytes: int, address: int, device_index: int) -> npt.NDArray[np.uint64]:
    rows = np.empty((blocks.size, 3), dtype=np.uint64)
    rows[:, 0] = blocks * block_bytes + address
    rows[:, 1] = block_bytes
    rows[:, 2] = device_index
    return rows
