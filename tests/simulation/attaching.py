"""How a simulated engine maps pools: as the SDK does, without memory."""

from collections.abc import Mapping
from unittest.mock import Mock

from kvferry.core.layouts import WorkerLayout
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.pools import AttachedPool, MappedPool
from tests.simulation.dataplane import DataPlaneLife


def attach(client: EngineClient, layout: WorkerLayout, planes: Mapping[int, DataPlaneLife]) -> list[bytes]:
    """Map every pool that can be mapped and is not; returns the lives of those that are mapped."""
    pools = client._open_state().pools
    for info in client.pools:
        attached, life = pools._attached.get(info.rank), planes.get(info.rank)
        # A data plane offers its own pool only, and not after its death.
        there = life is not None and life.host.process.alive and life.boot_id == info.boot_id
        if there and (attached is None or not attached.valid):
            pools._attached[info.rank] = AttachedPool(info, layout, MappedPool(Mock(), "cpu", Mock()))
    return [pool.info.boot_id for pool in pools._attached.values() if pool.valid]
