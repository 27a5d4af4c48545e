"""Opens both ends of the packed path as the configuration says."""

from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from kvferry.core.errors import ConfigInvalid
from kvferry.device.copying import Window
from kvferry_dataplane.config import Config
from kvferry_dataplane.packed.book import CostBook
from kvferry_dataplane.packed.calibration import assumed_nixl_cost, measured_packed_cost
from kvferry_dataplane.packed.reader import PackReader
from kvferry_dataplane.packed.server import PackServer
from kvferry_dataplane.packed.sink import HostSink
from kvferry_dataplane.packed.source import HostSource
from kvferry_dataplane.paths import PathRule
from kvferry_dataplane.pool import Pool

_log = structlog.get_logger("kvferry.dataplane.packed")


class Packing(NamedTuple):
    """The source's end, running."""

    server: PackServer
    endpoint: str
    """Where readers find it."""


def open_pack_server(config: Config, pool: Pool, boot_id: bytes, words: npt.NDArray[np.uint64]) -> Packing | None:
    """Start to pack, if that is configured.

    Raises:
        AddressInUse: the address cannot be listened on.
        ConfigInvalid: pieces of such a pool are not packed, or there is no such congestion control.
    """
    if config.pack_listen is None:
        return None
    if pool.device != "cpu":
        raise ConfigInvalid.of_field("pack_listen", config.pack_listen, "only pools in host memory are packed")
    source = HostSource(Window(pool.region.address, pool.region.size_bytes))
    server = PackServer(config.pack_listen, boot_id, words, source, congestion=config.pack_congestion)
    server.start()
    found_at = config.pack_advertise or config.pack_listen
    port = found_at.port or server.port
    endpoint = f"[{found_at.host}]:{port}" if ":" in found_at.host else f"{found_at.host}:{port}"
    _log.info("packing", port=server.port, endpoint=endpoint, congestion=server.congestion)
    return Packing(server, endpoint)


def open_pack_reader(config: Config, pool: Pool, wake: int) -> PackReader | None:
    """What reads from sources that pack; None for a pool that it cannot read into.

    ``wake``: an eventfd told of the end of batches.

    Raises:
        ConfigInvalid: the packed path is configured for such a pool.
    """
    if pool.device != "cpu":
        if config.paths.rule is PathRule.PACKED:
            raise ConfigInvalid.of_field("path", config.paths.rule, "only pools in host memory are read into")
        return None
    return PackReader(HostSink(Window(pool.region.address, pool.region.size_bytes)), wake)


def open_cost_book() -> CostBook:
    """What the ways cost before the first read. Takes some 20 ms."""
    costs = CostBook(assumed_nixl_cost(), measured_packed_cost())
    _log.info("costs", nixl=asdict(costs.nixl), packed=asdict(costs.packed))
    return costs
