"""Rows of the benchmarks: figures, ratios, and the picture of them."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvferry.bench.figures import Timing
from kvferry.bench.host import cpu_model, host_info
from kvferry.bench.paged_bytes import PagedBytes
from kvferry.bench.plot import draw, points_of, size_label
from kvferry.bench.trace_figures import RequestFigures, TraceRow
from kvferry.bench.transfer import require_path
from kvferry.bench.transfer_case import STAGES, PathCase, Place, TransferRow
from kvferry.bench.transfer_settings import Direction, TransferSettings
from kvferry.bench.workload import GROUP, Workload
from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import ConfigInvalid, TransportFailed
from kvferry.core.layouts import ElementType
from kvferry.sdk.results import TransferResult, TransferState

TOTAL = 10**9 // 4096 * 4096


def row(path: str = "local", block_bytes: int = 4096, order: str = "random", directions: int = 1) -> TransferRow:
    """A pull of 0.5 s, half of it reading, beside a baseline of 2 s and a ceiling of 0.25 s."""
    others = {"raw_nixl_default": Timing((2.0, 2.0)), "ceiling_copy": Timing((0.25, 0.25))}
    stages = dict.fromkeys(STAGES, Timing((0.25, 0.25)))
    case = PathCase(path, "all", path, path, "same host", 7, Timing((0.5, 0.5)), stages, others)
    workload = Workload(block_bytes, TOTAL, TOTAL, 1, order)
    return TransferRow(
        case, workload, Place("cpu", "cpu", "loopback", directions), {"mooncake": "not installed"}, {"cpus": 2}
    )


def request(pull_s: float, failure: str = "", received_bytes: int = 10**9) -> RequestFigures:
    """A request that took so long."""
    return RequestFigures(100, 16, 0.0, 0.0, 0.001, pull_s, 0.0, pull_s, received_bytes, "local", False, failure)


def test_ratios_above_one_mean_that_the_pull_was_faster() -> None:
    """Four times as fast as the baseline, half as fast as the ceiling; the read alone is told apart."""
    found = json.loads(json.dumps(row().to_dict()))
    assert [4.0, 0.5] == [found["ratio_to_raw_nixl_default"], found["ratio_to_ceiling_copy"]]
    assert [["raw_nixl_default"], ["ceiling_copy"]] == [list(found["baselines"]), list(found["ceilings"])]
    assert pytest.approx(2 * found["gbytes_per_s"]["median"]) == found["read_gbytes_per_s"]["median"]
    assert {"mooncake": "not installed"} == found["unavailable"]


def test_what_goes_both_ways_is_counted_twice() -> None:
    """Two pulls at once move twice the bytes in the time of the slower."""
    one, two = row().to_dict(), row(directions=2).to_dict()
    assert one["gbytes_per_s"]["median"] * 2 == two["gbytes_per_s"]["median"]  # type: ignore[index]
    settings = TransferSettings(
        ("local",), "cuda:1", (4096,), 4096, ("random",), 1, 1, "loopback", ("8", "all"), "cuda:0", True
    )
    assert (Direction("cuda:0", "cuda:1"), Direction("cuda:1", "cuda:0", back=True)) == settings.directions
    assert ["local-sm8", "local"] == [variant.name for variant in settings.variants()]


def test_a_pull_by_another_path_is_an_error() -> None:
    """A forced path that was not taken is told, one that is left open is not."""
    result = TransferResult("transfers/a", "a", TransferState.SUCCEEDED, True, path="nixl")
    require_path(result, "auto")
    require_path(result, "nixl")
    require_path(replace(result, backend="LIBFABRIC"), "libfabric")
    with pytest.raises(TransportFailed, match="path=local was forced, the pull took nixl"):
        require_path(result, "local")
    with pytest.raises(TransportFailed, match="path=libfabric was forced, the pull took nixl"):
        require_path(replace(result, backend="UCX"), "libfabric")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"paths": ("carrier",)}, "paths"),
        ({"paths": ("nixl", "nixl")}, "paths"),
        ({"orders": ("sorted",)}, "order"),
        ({"block_sizes": (1000,)}, "blocks"),
        ({"total_bytes": 4097}, "total"),
        ({"network": "namespaces", "paths": ("local",)}, "paths"),
        ({"sm_counts": ("16", "16")}, "sm_count"),
        ({"source_device": "cuda:0"}, "source_device"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, object], field: str) -> None:
    """Unknown names, repeated paths and sizes that do not divide are named."""
    good: dict[str, object] = {
        "paths": ("auto",),
        "device": "cpu",
        "block_sizes": (4096,),
        "total_bytes": 1 << 20,
        "orders": ("random",),
        "repeats": 1,
        "threads": 1,
        "network": "loopback",
    }
    with pytest.raises(ConfigInvalid, match=f"{field}="):
        TransferSettings(**(good | changes)).check()  # type: ignore[arg-type]


def test_lines_of_the_picture_are_in_order_of_size() -> None:
    """Every method is a line; with more than one order the name tells which."""
    points = points_of([row(block_bytes=8192), row()])
    assert [4096, 8192] == [size for size, _ in points["ceiling_copy"]]
    assert "kvferry local, contiguous" in points_of([row(), row(order="contiguous")])


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    """The file is a picture in the format that its name tells."""
    pytest.importorskip("matplotlib")
    draw([row(), row(block_bytes=1 << 20)], tmp_path / "out.png")
    assert b"\x89PNG" == (tmp_path / "out.png").read_bytes()[:4]
    with pytest.raises(ConfigInvalid, match="plot="):
        draw([row()], tmp_path / "missing" / "out.png")


def test_without_the_plotting_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where matplotlib is missing, the error says what to install."""

    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigInvalid, match=r"kvferry\[plot\]"):
        draw([row()], tmp_path / "out.png")


def test_sizes_on_the_axis_have_units() -> None:
    """Sizes are named in KiB or MiB."""
    assert ["4 KiB", "1 MiB"] == [size_label(4096), size_label(1 << 20)]


def test_failures_are_counted_by_reason_and_kept_out_of_the_times() -> None:
    """A failed pull has no time that would flatter the quantiles."""
    requests = [request(1.0), request(3.0), request(0.0, "FENCED", 0), request(0.0, "FENCED", 0)]
    found = TraceRow(True, {"path": "local"}, requests, 4.0, {}).to_dict()
    assert {"FENCED": 2} == found["failures"]
    assert {"p50": 1.0, "p90": 3.0, "p99": 3.0, "max": 3.0} == found["pull_s"]
    assert 0.5 == found["gbytes_per_s"]
    assert {"median": 1 / 3, "min": 1 / 3, "max": 1.0} == found["gbytes_per_s_of_pulls"]


def test_a_replay_without_success_has_no_times() -> None:
    """Where every pull failed, there is nothing to take quantiles of."""
    found = TraceRow(False, {}, [request(0.0, "PEER_LOST", 0)], 1.0, {}).to_dict()
    assert [{}, {}, 0] == [found["pull_s"], found["gbytes_per_s_of_pulls"], found["succeeded"]]


def test_the_host_is_described() -> None:
    """The CPU's name comes from the kernel; settings are those in effect."""
    assert "Some CPU @ 2 GHz" == cpu_model("processor: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name: other\n")
    assert {"UCX_TLS": "tcp"} == host_info({"UCX_TLS": "tcp"})["settings"]


def test_blocks_are_compared_up_to_the_last_token() -> None:
    """A byte behind the last token may differ, a byte of it may not; the order of blocks counts."""
    model = DenseModel("m", layer_count=2, kv_heads=1, head_dim=8, tokens_per_block=4, element_type=ElementType.FLOAT16)
    layout = dense_layout(model, block_count=8)
    pool = torch.randint(0, 256, (2 * 2 * 8 * 64,), dtype=torch.uint8)
    copy = torch.zeros_like(pool)
    here, there = PagedBytes(copy, layout), PagedBytes(pool, layout)
    here.poison([1, 2])
    placement = layout.ranks[0].placements[0]
    for layer in range(2):
        for kv in range(2):
            region = layer * placement.strides.layer + kv * placement.strides.kv
            for source, destination, count in ((5, 1, 64), (3, 2, 48)):
                start, end = region + source * 64, region + destination * 64
                copy[end : end + count] = pool[start : start + count]
    assert here.equals([1, 2], there, [5, 3], last_tokens=3)
    assert not here.equals([2, 1], there, [5, 3], last_tokens=3)
    copy[placement.strides.kv + 2 * 64 + 47] ^= 1
    assert not here.equals([1, 2], there, [5, 3], last_tokens=3)
    assert GROUP == placement.group
