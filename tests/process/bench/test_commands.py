"""`kvferry bench transfer` and `bench trace` as a user runs them, as small as they get."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.process.launch.capabilities import needs_namespaces

TIMEOUT_S = 110


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command `kvferry bench`."""
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "kvferry.cli.main", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def bench(*arguments: str) -> list[dict[str, Any]]:
    """The rows that a benchmark writes."""
    done = run(*arguments, "--json")
    assert 0 == done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def namespaces() -> set[str]:
    """Network namespaces that benchmarks or tests have made."""
    return {path.name for path in Path("/run/netns").glob("kvferry-*")}


def trace_file(directory: Path, requests: int) -> Path:
    """Requests 10 ms apart, each of which shares all but its last 512 tokens with the one before."""
    lines = [
        {
            "timestamp": 10 * index,
            "input_length": 512 * (index + 2) - 5,
            "output_length": 1,
            "hash_ids": [*range(index + 1), 1000 + index],
        }
        for index in range(requests)
    ]
    path = directory / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def check_rows(rows: list[dict[str, Any]]) -> None:
    """Whether every row has the figures of what ran in the same rounds."""
    for row in rows:
        assert row["path"] in {"auto", row["path_taken"]}
        assert {"ceiling_copy", "ceiling_memcpy"} == set(row["ceilings"])
        assert {"raw_nixl_default", "raw_nixl_tuned", "mooncake"} == {*row["baselines"], *row["unavailable"]}
        assert 0 < row["gbytes_per_s"]["min"] <= row["gbytes_per_s"]["median"] <= row["read_gbytes_per_s"]["max"]
        assert 4 << 20 == row["total_bytes"]


@pytest.mark.long
def test_transfer_measures_a_path_beside_baselines_and_ceilings() -> None:
    """One row per block size and order."""
    rows = bench("transfer", "--paths", "local", "--blocks", "64KiB", "--total", "4MiB", "--repeats", "2")
    assert ["local"] == [row["path"] for row in rows]
    check_rows(rows)


@pytest.mark.long
def test_transfer_measures_every_path() -> None:
    """And per path."""
    sizes = ("--blocks", "16KiB,64KiB", "--total", "4MiB", "--order", "random,contiguous", "--repeats", "2")
    rows = bench("transfer", "--paths", "auto,local,nixl,packed", *sizes)
    cases = {(row["path"], row["block_bytes"], row["order"]) for row in rows}
    assert len(rows) == len(cases) == 16
    check_rows(rows)


@needs_namespaces
@pytest.mark.long
def test_transfer_over_a_wire_is_measured_against_a_stream() -> None:
    """Between two namespaces nothing is mapped; one TCP socket is the ceiling, and nothing is left afterwards."""
    before = namespaces()
    sizes = ("--blocks", "64KiB", "--total", "4MiB", "--repeats", "2")
    rows = bench("transfer", "--paths", "nixl,packed,ucx,libfabric", *sizes, "--network", "namespaces")
    assert ["nixl", "packed", "ucx", "nixl"] == [row["path_taken"] for row in rows]
    assert [{"ceiling_tcp_stream"}] * 4 == [set(row["ceilings"]) for row in rows]
    assert {"tcp"} == {row["host"]["settings"]["UCX_TLS"] for row in rows}
    assert set() == namespaces() - before


def test_trace_replays_with_and_without_prefixes(tmp_path: Path) -> None:
    """Both replays deliver verified bytes; with prefixes present fewer bytes are read."""
    file = trace_file(tmp_path, 5)
    read, present = bench("trace", str(file), "--scale", "0.0125", "--pool", "16MiB", "--verify-every", "1")
    tokens = sum(512 * (index + 2) - 5 for index in range(5))
    assert [5, 5] == [read["verified"], present["verified"]]
    assert [{}, {}] == [read["failures"], present["failures"]]
    assert [False, True] == [read["prefix_present"], present["prefix_present"]]
    assert tokens * 512 == read["total_bytes"]
    assert (tokens - present["tokens_present"]) * 512 == present["total_bytes"]


@pytest.mark.long
def test_trace_waits_for_blocks_that_are_taken(tmp_path: Path) -> None:
    """A pool that holds one request at a time serves all, one after the other."""
    file = trace_file(tmp_path, 4)
    (row,) = bench(
        "trace", str(file), "--scale", "0.0125", "--pool", "1312KiB", "--prefix-present", "no", "--speed", "1000"
    )
    assert 4 == row["succeeded"]
    assert row["allocation_wait_s"]["max"] > 0


def test_trace_refuses_a_request_larger_than_the_pool(tmp_path: Path) -> None:
    """The line and the option are named before anything is started."""
    done = run("trace", str(trace_file(tmp_path, 4)), "--pool", "1MiB")
    assert (2, True) == (done.returncode, "pool=1048576: line 4 alone needs" in done.stderr)


@pytest.mark.long
def test_checksums_are_measured_against_copies_and_plain_pulls() -> None:
    """Every method has its rates, and pulls that compare are set against one that does not."""
    (figures,) = bench("checksums", "--total", "8MiB", "--repeats", "2")
    assert {"copy", "digest", "publish", "pull off", "pull sampled:16", "pull full"} == set(figures["gbytes_per_s"])
    assert {"pull off", "pull sampled:16", "pull full"} == set(figures["pull_to_pull_off"])
    assert figures["digest_to_copy"] > 0
