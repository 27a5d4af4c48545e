"""What makes a data plane ill: its device."""

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest

from kvferry.core.errors import TransportFailed
from kvferry.device.cuda import CudaDevice
from kvferry_dataplane.copiers import Copiers
from kvferry_dataplane.desk import ReadDesk
from kvferry_dataplane.reads.thread import ReadThread
from kvferry_dataplane.serving import ServingThread
from kvferry_dataplane.vitals import open_health

SERVICE = "kvferry.dataplane.v1.DataPlaneService"
BOUND_S = 10.0


class Copier:
    """Stands for the copier of a device."""

    def __init__(self, device: CudaDevice, *, sm_count_max: int | None) -> None:
        self.failure: TransportFailed | None = None


async def test_a_lost_device_is_not_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data plane whose device has failed says so at once, also to who asks whether a restart may help."""
    monkeypatch.setattr("kvferry_dataplane.copiers.CudaCopier", Copier)
    copiers = Copiers(thread_count=1, sm_count_max=None, wake_descriptor=0)
    copier = cast("Copier", copiers.on(Mock(CudaDevice, index=3)))
    desk, reads = Mock(ReadDesk, overdue_count=lambda _: 0), Mock(ReadThread, ping=lambda answer: answer())
    serving = Mock(ServingThread, turn_count=0, expecting=False)
    changes: queue.Queue[Mapping[str, bool]] = queue.Queue()
    watch = open_health(tmp_path / "health", SERVICE, 60.0, (desk, reads, serving, copiers), changes.put)
    watch.start()
    try:
        names = {"", "liveness", SERVICE, "reads", "serving"}
        assert dict.fromkeys(names, True) == changes.get(timeout=BOUND_S)
        copier.failure = TransportFailed("cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS")
        assert "cuda:3 has failed: cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS" == copiers.lost_device()
        assert dict.fromkeys(names, False) | {"serving": True} == changes.get(timeout=BOUND_S)
    finally:
        watch.stop()
