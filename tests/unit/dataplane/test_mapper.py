"""Memory of others as a device's copies see it."""

from unittest.mock import Mock

import pytest

from kvferry.device.copying import Window
from kvferry.device.cuda import CudaDevice
from kvferry_dataplane.copiers import Copiers
from kvferry_dataplane.pool import Pool
from kvferry_dataplane.sharing.mapper import PoolMapper

HERE, THERE = bytes(16), bytes(15) + b"\x01"


@pytest.mark.parametrize(("source", "on_peer"), [(HERE, False), (THERE, True)])
def test_a_pool_of_another_device_is_on_a_peer(source: bytes, on_peer: bool) -> None:
    """What is mapped from the same device is not; that the other lies behind a link decides how much copies take."""
    device = Mock(CudaDevice, uuid=HERE, open_handle=lambda _: 1 << 33)
    pool = Mock(Pool, cuda_device=device, memory=Mock(address=1 << 32, size_bytes=4096))
    mapped = PoolMapper(pool, Mock(Copiers)).map_cuda(b"handle", source, 8192)
    assert (Window(1 << 33, 8192, on_peer), Window(1 << 32, 4096)) == (mapped.source, mapped.destination)
