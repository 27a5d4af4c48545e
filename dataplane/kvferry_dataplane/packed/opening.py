"""Opens the source's end of the packed path as the configuration says."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from kvferry.core.errors import ConfigInvalid
from kvferry.device.copying import Window
from kvferry_dataplane.config import Config
from kvferry_dataplane.packed.server import PackServer
from kvferry_dataplane.packed.source import HostSource
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
