"""``kvferry plan`` and ``kvferry bench plan``."""

import dataclasses
import json
from pathlib import Path

import pytest
from google.protobuf import json_format
from typer.testing import CliRunner

from kvferry.cli.main import app
from kvferry.cli.picture import picture
from kvferry.core.dense import HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.rpc.layouts import layout_to_wire

MODEL = DenseModel("m", 3, 4, 8, 16, ElementType.BFLOAT16)


def written(folder: Path, name: str, layout: WorkerLayout) -> str:
    """A layout as a file."""
    path = folder / f"{name}.json"
    path.write_text(json_format.MessageToJson(layout_to_wire(layout)))
    return str(path)


def test_a_plan_is_explained_as_json(tmp_path: Path) -> None:
    """Verdict, bytes by source rank and pieces come as one object."""
    source = written(tmp_path, "source", dense_layout(MODEL, 8, 2, HND, pipeline=(2, 1)))
    destination = written(tmp_path, "destination", dense_layout(MODEL, 8, 1, HND))
    result = CliRunner().invoke(app, ["plan", source, destination, "--tokens", "40", "--present", "8", "--json"])
    assert 0 == result.exit_code, result.stderr
    found = json.loads(result.stdout)
    cell = 32 * 2 * 8 * 2
    assert (True, []) == (found["compatible"], found["mismatches"])
    (rank,) = found["ranks"]
    assert [(0, 4 * cell), (1, 4 * cell), (2, 2 * cell), (3, 2 * cell)] == [
        (part["source_rank"], part["total_bytes"]) for part in rank["sources"]
    ]
    assert 12 * cell == rank["total_bytes"]


def test_a_mismatch_is_explained_and_fails(tmp_path: Path) -> None:
    """Each reason is shown with both values, and the exit status is 1."""
    source = written(tmp_path, "source", dense_layout(MODEL, 8))
    destination = written(tmp_path, "destination", dense_layout(dataclasses.replace(MODEL, head_dim=16), 8))
    result = CliRunner().invoke(app, ["plan", source, destination, "--tokens", "40"])
    assert 1 == result.exit_code
    assert "groups[full].head_dim" in result.stdout
    assert result.stderr.startswith("error: LAYOUT_MISMATCH: ")


@pytest.mark.parametrize(("text", "status"), [(None, 2), ("{", 2), ('{"model": 3}', 2), ('{"model": "m"}', 1)])
def test_what_is_no_layout_is_refused(tmp_path: Path, text: str | None, status: int) -> None:
    """A file that is missing, no JSON, or no valid layout, is one line and no traceback."""
    path = tmp_path / "layout.json"
    if text is not None:
        path.write_text(text)
    result = CliRunner().invoke(app, ["plan", str(path), str(path), "--tokens", "1"])
    assert status == result.exit_code
    assert 1 == result.stderr.count("\n")


def test_the_picture_shows_from_whom_each_cell_is_read() -> None:
    """Layers that are read alike are one row."""
    source = dense_layout(MODEL, 8, 2, pipeline=(2, 1))
    destination = dense_layout(dataclasses.replace(MODEL, tokens_per_block=32), 8, 1, NHD)
    expected = [
        "",
        "full: the source rank of each cell, layers down, heads across; blocks of 16 into blocks of 32",
        "  rank 0  head   0   1   2   3",
        "    layers 0 to 1       0   0   1   1",
        "    layer 2             2   2   3   3",
    ]
    assert expected == list(picture(source, destination))


def test_the_plan_benchmark_says_what_it_measured() -> None:
    """Each case has its times, its pieces before and after joining, and its memory."""
    result = CliRunner().invoke(app, ["bench", "plan", "--tokens", "256", "--repeats", "1", "--json"])
    assert 0 == result.exit_code, result.stderr
    found = json.loads(result.stdout)
    first = found["cases"][0]
    assert (80 * 2 * 256, 80 * 2 * 16, 4096.0) == (
        first["row_count"],
        first["piece_count"],
        first["mean_piece_bytes"],
    )
    assert {"cold_ms", "cached_ms", "memory_ratio"} <= first.keys()
