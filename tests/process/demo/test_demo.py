"""``kvferry demo`` and ``kvferry up`` as people run them."""

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.demo.commands import alive, descendants, finished, kvferry, left_in, until

PROCESSES = 10
"""etcd, 2 controls, 4 data planes, 2 engines and the single-process run."""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """An empty directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="kvf-") as path:
        yield Path(path)


async def test_the_demo_verifies_everything_and_says_so(temporary: Path) -> None:
    """Tokens equal the single-process run's, bytes the arithmetic's; nothing is held, running or left on disk."""
    async with kvferry("demo", "--json", "--requests", "5", "--concurrency", "3", temporary=temporary) as demo:
        status, out, err = await finished(demo)
    assert status == 0, err
    found = json.loads(out)
    keys = ("ok", "requests", "tokens_equal", "leaked_leases", "leaked_blocks", "paths")
    assert [True, 5, True, 0, 0, {"local": 5}] == [found[key] for key in keys]
    assert found["bytes_expected"] == found["bytes_pulled"] > 0
    assert [] == left_in(temporary)


@pytest.mark.long
async def test_the_demo_takes_what_moves_the_bytes(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, an engine's file and variables reach its data planes, and the transfers say which way they took; what it
    decides itself is not taken from the environment."""
    monkeypatch.setenv("KVFERRY_WORKER_NAME", "intruder")
    monkeypatch.setenv("KVFERRY_MAX_READS", "64")
    engine = temporary / "engine.yaml"
    engine.write_text("cache_transceiver_config: {backend: NIXL, kv_transfer_timeout_ms: 60000}")
    logs = temporary / "logs"
    logs.mkdir()
    flags = ("--same-host", "off", "--nixl-backend", "UCX", "--trtllm-config", str(engine), "--logs", str(logs))
    async with kvferry("demo", "--json", "--requests", "2", *flags, temporary=temporary) as demo:
        status, out, err = await finished(demo)
    assert status == 0, err
    found = json.loads(out)
    assert [True, True] == [found["ok"], found["tokens_equal"]]
    assert {("nixl", "UCX")} == {(one["path"], one["backend"]) for one in found["transfers"]}
    told = [line for log in logs.glob("*.log") for line in log.read_text().splitlines() if '"configuration"' in line]
    assert 4 == sum('"max_reads": "64 (environment KVFERRY_MAX_READS)"' in line for line in told)
    assert 4 == sum(f'"backend": "NIXL (file {engine}: cache_transceiver_config.backend)"' in line for line in told)
    assert 2 == sum('"transfers.timeout_s": "60.0 (file' in line for line in told)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interrupted_demo_ends_its_processes_in_order(
    temporary: Path, number: signal.Signals, status: int
) -> None:
    """Ctrl-C and SIGTERM end the demo without a traceback, without processes and without files."""
    async with kvferry("demo", temporary=temporary) as demo:
        await until(lambda: len(descendants(demo.pid)) >= PROCESSES // 2, "processes started")
        below = descendants(demo.pid)
        demo.send_signal(number)
        ended, _, err = await finished(demo)
    assert (status, False) == (ended, "Traceback" in err), err
    await until(lambda: not alive(below), "all processes gone")
    assert [] == left_in(temporary)


async def test_children_die_with_a_killed_parent(temporary: Path) -> None:
    """SIGKILL leaves the parent no time to clean up; the kernel ends its children."""
    async with kvferry("up", "--json", "--pool", "8MiB", temporary=temporary) as up:
        assert up.stdout is not None
        described = json.loads(await up.stdout.readline())
        below = descendants(up.pid)
        assert set(described["pids"].values()) <= {process.pid for process in below}
        up.kill()
        await until(lambda: not alive(below), "all processes gone")


async def test_up_ends_with_an_error_when_a_process_dies(temporary: Path) -> None:
    """When the control is killed, ``up`` names it on one line, ends with status 1 and ends the others."""
    async with kvferry("up", "--json", "--pool", "8MiB", temporary=temporary) as up:
        assert up.stdout is not None
        described = json.loads(await up.stdout.readline())
        (control,) = [p for p in descendants(up.pid) if p.pid == described["pids"]["worker-0.control"]]
        control.kill()
        status, _, err = await finished(up)
    assert (1, 1) == (status, err.count("\n")), err
    assert "worker-0.control ended with signal SIGKILL" in err
    assert [] == left_in(temporary)
