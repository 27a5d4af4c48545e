"""What processes run with, and what ``kvferry config show`` says of it."""

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from tests.process.dataplane.conftest import Start

EXAMPLE = Path(__file__).resolve().parents[3] / "deploy" / "control.example.toml"
FIRST_LINE_S = 30.0


def show(process: str, *flags: str, environment: Mapping[str, str] | None = None) -> tuple[int, Any, str]:
    """Exit status, document and standard error of ``kvferry config show``."""
    command = [sys.executable, "-m", "kvferry.cli.main", "config", "show", process, "--json", *flags]
    done = subprocess.run(  # noqa: S603 - the interpreter of this test
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}, timeout=60
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def not_default(document: Any) -> dict[str, str]:
    """What differs from the defaults, as processes log it."""
    shown: dict[str, str] = {}
    for name, value in document["values"].items():
        origin = {
            "flag": f"flag {value['name']}",
            "environment": f"environment {value['name']}",
            "file": f"file {value['path']}: {value['name']}",
        }.get(value["source"])
        if origin is not None:
            shown[name] = f"{value['value']} ({origin})"
    return shown


def logged(line: Mapping[str, Any]) -> dict[str, str]:
    """The values in a process's line about its configuration."""
    return {name: text for name, text in line.items() if isinstance(text, str) and text.endswith(")")}


async def test_a_data_plane_runs_with_what_is_shown(start: Start, tmp_path: Path) -> None:
    """Values from a file, an engine's file, variables and flags: shown, logged and in effect are the same."""
    file, engine = tmp_path / "dp.yaml", tmp_path / "engine.yaml"
    file.write_text("same_host: off\nmax_reads: 17\nmax_leases: 64\nlog_level: warning\n")
    engine.write_text("cache_transceiver_config: {backend: NIXL, max_tokens_in_buffer: 2048}\n")
    environment = {"KVFERRY_MAX_READS": "18", "KVFERRY_LOG_LEVEL": "info", "TRTLLM_NIXL_KVCACHE_BACKEND": "UCX"}
    flags = ("--config", str(file), "--trtllm-config", str(engine), "--max-leases", "32")
    plane = await start("plane", None, environment, *flags)
    own = ("--pool-bytes", str(plane.pool().size), "--socket", str(plane.socket), "--drain-timeout", "0")
    status, document, error = show("dataplane", *own, *flags, environment=environment)
    assert (0, "", None) == (status, error, document["refusal"])
    line = next(line for line in map(json.loads, plane.log().splitlines()) if line["event"] == "configuration")
    assert not_default(document) == logged(line)
    assert document["comes_to"]["transport"] == line["transport"] == "nixl/UCX"
    assert {
        "same_host": f"off (file {file}: same_host)",
        "max_reads": "18 (environment KVFERRY_MAX_READS)",
        "max_leases": "32 (flag --max-leases)",
        "log_level": "info (environment KVFERRY_LOG_LEVEL)",
        "backend": f"NIXL (file {engine}: cache_transceiver_config.backend)",
        "nixl_backend": "UCX (environment TRTLLM_NIXL_KVCACHE_BACKEND)",
    }.items() <= logged(line).items()
    described = await plane.stub.Describe(pb.DescribeRequest())
    # One slot is for what probes read.
    assert (32 + 1, b"") == (described.access.lease_slot_count, described.access.host_id)
    assert any("max_tokens_in_buffer=2048 has no effect" in note for note in document["notes"])
    assert all(note in plane.log() for note in document["notes"])


@pytest.mark.parametrize(
    ("flags", "environment", "line"),
    [
        (("--max-reads", "0"), {}, "max_reads=0: must be 1 to 65536 (from flag --max-reads)"),
        ((), {"KVFERRY_BAKEND": "UCX"}, "KVFERRY_BAKEND: unknown variable; the nearest known variable is"),
        ((), {"KVFERRY_NIXL_BACKEND": "UCX", "KVFERRY_BACKEND": "UCX"}, "nixl_backend=UCX: goes with backend NIXL"),
        (("--bakend", "UCX"), {}, "--bakend: unknown flag; the nearest known flag is '--backend'"),
    ],
)
@pytest.mark.long
def test_what_a_data_plane_refuses_is_refused_by_show(
    flags: tuple[str, ...], environment: dict[str, str], line: str
) -> None:
    """With the same words and the same status."""
    required = ("--pool-bytes", "1MiB", "--socket", "/nowhere/s")
    started = subprocess.run(  # noqa: S603 - the interpreter of this test
        [sys.executable, "-m", "kvferry_dataplane", *required, *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,
    )
    status, document, error = show("dataplane", *required, *flags, environment=environment)
    assert (2, 2) == (started.returncode, status)
    assert line in started.stderr
    assert line in error
    assert document is None or line in document["refusal"]


@pytest.mark.long
async def test_an_ambiguous_engines_file_is_refused_by_data_plane_demo_and_show(tmp_path: Path) -> None:
    """All three say both readings and the line that settles it; with that line the data plane's choice is shown."""
    engine = tmp_path / "engine.yaml"
    engine.write_text("cache_transceiver_config:\n  backend: DEFAULT\n")
    environment = {**os.environ, "TRTLLM_USE_UCX_KVCACHE": "1"}
    for command in (
        ["kvferry_dataplane", "--pool-bytes", "1MiB", "--socket", "/nowhere/s"],
        ["kvferry.cli.main", "demo"],
        ["kvferry.cli.main", "up"],
        ["kvferry.cli.main", "config", "show", "dataplane"],
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, "--trtllm-config", str(engine), stdout=PIPE, stderr=PIPE, env=environment
        )
        async with asyncio.timeout(60):
            _, error = await process.communicate()
        assert 2 == process.returncode, command
        for text in (b"read as NIXL by", b"UCX by", b"`backend: NIXL` or `backend: UCX`"):
            assert text in error, command
    engine.write_text("cache_transceiver_config:\n  backend: UCX\n")
    required = ("--pool-bytes", "1MiB", "--socket", "/s", "--trtllm-config", str(engine))
    status, document, _ = show("dataplane", *required, environment={"TRTLLM_USE_UCX_KVCACHE": "1"})
    assert (0, "ucx") == (status, document["comes_to"]["transport"])


async def test_a_control_runs_with_what_is_shown(tmp_path: Path) -> None:
    """Shown and logged are the same, and of a password file only the path is told."""
    password = tmp_path / "password"
    password.write_text("hunter2")
    flags = ("--config", str(EXAMPLE), "--etcd-endpoints", "127.0.0.1:1", "--log-format", "json")
    environment = {
        "KVFERRY_ETCD_USER": "kvferry",
        "KVFERRY_ETCD_PASSWORD_FILE": str(password),
        "KVFERRY_WORKER_ENGINE_SOCKET": str(tmp_path / "e.sock"),
        "KVFERRY_WORKER_LISTEN": "127.0.0.1:0",
        "KVFERRY_METRICS_LISTEN": "127.0.0.1:0",
        "KVFERRY_RANKS": str(tmp_path / "dp.sock"),
    }
    status, document, error = show("control", *flags, environment=environment)
    assert (0, "") == (status, error)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kvferry_control", *flags, stderr=PIPE, env={**os.environ, **environment}
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(FIRST_LINE_S):
            line = json.loads(await process.stderr.readline())
    finally:
        process.kill()
        await process.wait()
    assert "configuration" == line["event"]
    assert not_default(document) == logged(line)
    assert f"{password} (environment KVFERRY_ETCD_PASSWORD_FILE)" == line["etcd.password_file"]
    assert "hunter2" not in json.dumps([document, line])
