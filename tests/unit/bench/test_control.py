"""What ``bench control`` makes of its samples."""

import json
import os
import time

import pytest

from kvferry.bench.control import ControlResult, ControlSettings, Rate
from kvferry.bench.figures import Timing
from kvferry.bench.processes import CpuSample, CpuUse
from kvferry.core.errors import ConfigInvalid

SETTINGS = ControlSettings(device="cpu", in_flight=4, total_bytes=1 << 16, block_bytes=1 << 12, seconds=1.0)


def rate(**used_s: float) -> Rate:
    """Ten pulls in one second, and what each process used."""
    return Rate(4, Timing((0.1,) * 10), CpuUse(1.0, used_s))


def test_cpu_time_is_the_kernels() -> None:
    """A process that computes for a while is seen to have used about as much CPU time as it says itself."""
    before, began = CpuSample.of({"me": os.getpid()}), time.process_time()
    while time.process_time() - began < 0.1:
        sum(range(1_000))
    used = CpuSample.of({"me": os.getpid()}).since(before)
    assert 0.05 <= used.used_s["me"] <= time.process_time() - began + 0.05


def test_the_bound_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that fills a core is the bound, else all cores that are full, else the time of the exchanges."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    assert "a" == rate(a=0.95, b=0.1).bound
    assert "cores" == rate(a=0.7, b=0.6, c=0.6).bound
    assert "round trips" == rate(a=0.3, b=0.3).bound


def test_every_row_is_json() -> None:
    """Rates, baselines and idle processes are one JSON object each, with the figures by name."""
    result = ControlResult(SETTINGS, [rate(a=0.5)], {"health_check": Timing((0.001,))}, CpuUse(2.0, {"a": 0.01}))
    pulls, baseline, idle = (json.loads(json.dumps(row)) for row in result.to_rows())
    assert ("pulls", 4, 1 << 16, 10.0, {"a": 0.05}) == tuple(
        pulls[key] for key in ("case", "in_flight", "total_bytes", "pulls_per_s", "cpu_s_per_pull")
    )
    assert ("health_check", 0.001) == (baseline["case"], baseline["p50_s"])
    assert ("idle", {"a": 0.005}) == (idle["case"], idle["cores_used"])


def test_sizes_that_cannot_be_measured_are_refused() -> None:
    """A size that is no multiple of the block is refused by name."""
    with pytest.raises(ConfigInvalid) as caught:
        ControlSettings("cpu", 4, 5_000, 4_096, 1.0).check()
    assert "total" == caught.value.metadata["field"]
