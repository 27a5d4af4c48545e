"""Requests between two workers whose ranks lie on two GPUs, through the whole control plane."""

import pytest

from kvferry.demo.run import run_demo
from kvferry.demo.settings import DemoSettings, WorkerShape
from tests.gpu.conftest import second_device


class Quiet:
    """An observer that keeps nothing."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def served(self, one: object) -> None:
        """Nothing."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("prefill", "decode"), [(1, 2), (2, 1), (2, 2)])
async def test_tensor_parallel_degrees_change_across_gpus(prefill: int, decode: int) -> None:
    """Every rank pair, within a GPU and between two, copies on the device, and tokens are those of one process."""
    second_device()
    shapes = (
        WorkerShape(tensor_parallel=degree, memory_order=order) for degree, order in ((prefill, "nhd"), (decode, "hnd"))
    )
    settings = DemoSettings("cuda:0,cuda:1", 6, 3, None, prefill=next(shapes), decode=next(shapes))
    report = await run_demo(settings, Quiet())
    assert report.ok, report.to_dict()
    assert {"local": 6} == report.paths
