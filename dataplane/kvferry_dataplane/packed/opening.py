"""Opens both ends of the packed path as the configuration says."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from kvferry.device.copying import Window
from kvferry_dataplane.config import Config
from kvferry_dataplane.copiers import Copiers
from kvferry_dataplane.packed.agent import PackedAgent
from kvferry_dataplane.packed.book import CostBook
from kvferry_dataplane.packed.bounds import ServerBounds
from kvferry_dataplane.packed.calibration import assumed_nixl_cost, measured_packed_cost
from kvferry_dataplane.packed.reader import PackReader
from kvferry_dataplane.packed.server import PackServer
from kvferry_dataplane.packed.sink import ChunkSink, HostSink, ScatteringSink
from kvferry_dataplane.packed.slot_reader import SlotReader
from kvferry_dataplane.packed.source import ChunkSource, HostSource, PackingSource
from kvferry_dataplane.packed.staging import Staging, staging_memory
from kvferry_dataplane.packed.staging_agent import StagingAgent
from kvferry_dataplane.pool import Pool

_log = structlog.get_logger("kvferry.dataplane.packed")


class Packing(NamedTuple):
    """The source's end, running."""

    server: PackServer
    endpoint: str
    """Where readers find it."""


def open_staging(pool: Pool, copiers: Copiers) -> Staging:
    """Staging for one end of the packed path. Nothing is allocated before it is needed."""
    device = pool.cuda_device
    window = Window(pool.memory.address, pool.memory.size_bytes)
    return Staging(window, lambda: copiers.on(device), lambda: staging_memory(device))


def holds_chunks(config: Config) -> bool:
    """Whether this data plane holds chunks for readers that read them by NIXL."""
    return config.pack_listen is not None and config.paths.wire.wants_slots


def open_pack_server(
    config: Config, pool: Pool, boot_id: bytes, words: npt.NDArray[np.uint64], staging: Staging
) -> Packing | None:
    """Start to pack, if that is configured.

    Raises:
        AddressInUse: the address cannot be listened on.
        ConfigInvalid: there is no such congestion control, or it is not granted.
    """
    if config.pack_listen is None:
        return None
    bounds = ServerBounds()
    source: ChunkSource = (
        HostSource(Window(pool.memory.address, pool.memory.size_bytes))
        if pool.cuda_device is None
        else PackingSource(staging, bounds.staging_seconds)
    )
    server = PackServer(
        config.pack_listen,
        boot_id,
        words,
        source,
        staging=staging if holds_chunks(config) else None,
        congestion=config.pack_congestion,
        bounds=bounds,
    )
    server.start()
    found_at = config.pack_advertise or config.pack_listen
    port = found_at.port or server.port
    endpoint = f"[{found_at.host}]:{port}" if ":" in found_at.host else f"{found_at.host}:{port}"
    _log.info("packing", port=server.port, endpoint=endpoint, congestion=server.congestion)
    return Packing(server, endpoint)


def open_packed_agent(
    config: Config, pool: Pool, staging: Staging, wake: int, make_agent: Callable[[int], StagingAgent]
) -> PackedAgent:
    """What reads from sources that pack. ``wake``: an eventfd told of the end of batches."""
    window = Window(pool.memory.address, pool.memory.size_bytes)
    sink: ChunkSink = HostSink(window) if pool.cuda_device is None else ScatteringSink(staging)
    return PackedAgent(PackReader(sink, wake), SlotReader(staging, make_agent), config.paths.wire)


def open_cost_book() -> CostBook:
    """What the ways cost before the first read. Takes some 20 ms."""
    costs = CostBook(assumed_nixl_cost(), measured_packed_cost())
    _log.info("costs", nixl=asdict(costs.nixl), packed=asdict(costs.packed))
    return costs
