"""The process itself: its start, its footprint, its end."""

import asyncio
import json
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
from grpc_health.v1 import health_pb2

from kvferry.ending import ENDS_WITHIN_S, EXIT_STUCK
from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import POOL_BYTES, read_command, until
from tests.process.frozen_threads import frozen_thread, has_ended


async def test_start_and_footprint(start: Start) -> None:
    """It starts with 2 s of CPU, however busy the machine is, and holds at most 300 MB beside its pool."""
    plane = await start("plane")
    process = psutil.Process(plane.process.pid)
    assert sum(process.cpu_times()[:2]) <= 2.0
    assert process.memory_info().rss - POOL_BYTES <= 300_000_000


async def test_it_sleeps_when_idle(start: Start) -> None:
    """An idle data plane uses at most a hundredth of a core."""
    plane = await start("plane")
    process = psutil.Process(plane.process.pid)
    before = process.cpu_times()
    await asyncio.sleep(3)
    after = process.cpu_times()
    assert (after.user + after.system) - (before.user + before.system) <= 0.03


async def test_a_clean_end(start: Start, tmp_path: Path) -> None:
    """SIGTERM ends it with status 0, and its sockets are gone."""
    plane = await start("plane")
    plane.signal(signal.SIGTERM)
    assert 0 == await asyncio.to_thread(plane.process.wait, 10)
    assert [] == _sockets(tmp_path)


@pytest.mark.long
async def test_a_stuck_end_is_bounded(start: Start) -> None:
    """A data plane that is told to end while its reads' thread is stuck ends all the same, within the bound, not with
    status 0; its log names the thread."""
    plane = await start("plane")
    with frozen_thread(plane.process.pid, "kvferry-reads") as thread:
        plane.signal(signal.SIGTERM)
        await until(lambda: has_ended(thread), ENDS_WITHIN_S + 10)
    assert EXIT_STUCK == await asyncio.to_thread(plane.process.wait, 10)
    last = json.loads(plane.log().splitlines()[-1])
    assert "take (mailbox.py:" in last["threads"]["kvferry-reads"]


async def test_health_and_permissions(start: Start) -> None:
    """It says that it serves, and only its own user can open its sockets."""
    plane = await start("plane")
    assert plane.channel is not None
    check = plane.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    assert health_pb2.HealthCheckResponse.SERVING == (await check(health_pb2.HealthCheckRequest())).status
    for path in (plane.socket, Path(f"{plane.socket}.pool")):
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)


async def test_a_killed_one_leaves_no_obstacle(start: Start, tmp_path: Path) -> None:
    """After SIGKILL, another starts on the same socket path."""
    first = await start("plane")
    first.signal(signal.SIGKILL)
    await asyncio.to_thread(first.process.wait, 10)
    suffixes = ("", ".health", ".lane", ".pool", ".share")
    assert [f"plane.sock{suffix}" for suffix in suffixes] == _sockets(tmp_path)
    await start("plane")


async def test_metrics_and_logs_tell_of_reads_without_secrets(start: Start) -> None:
    """A read shows in the metrics and in one log line; neither shows the lease word or the handle key."""
    flags = ("--metrics-listen", "127.0.0.1:0", "--log-level", "debug")
    source, destination = await start("source", None, None, *flags), await start("destination", None, None, *flags)
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", [1])
    await there.ask(expect_readers={"duration": {"seconds": 20}})
    peer = await source.as_peer()
    await here.send(connect_peer=peer)
    await here.send(read=read_command("t", peer, lease, [1], [1]))
    assert not (await here.finished("t")).HasField("failure")
    port = next(
        line["metrics_port"] for line in map(json.loads, destination.log().splitlines()) if "metrics_port" in line
    )
    with await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    assert 'kvferry_dataplane_reads_total{path="local",reason="",state="succeeded"} 1.0' in page
    assert 'kvferry_dataplane_read_bytes_total{path="local"} 16384.0' in page
    await until(lambda: "read succeeded" in destination.log())
    lines = [json.loads(line) for line in destination.log().splitlines()]
    told = [line for line in lines if line.get("transfer") == "t"]
    assert [("read succeeded", "destination", 0, 7)] == [
        (line["event"], line["worker"], line["rank"], line["incarnation"]) for line in told
    ]
    for text in (page, destination.log(), source.log()):
        assert str(lease.word) not in text
        assert f"{lease.word:x}" not in text
        assert "kkkk" not in text


def _sockets(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_socket())


def _refusal(*flags: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "kvferry_dataplane", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--pool-bytes", "1MiB", "--checksums", "sampled:0"), "checksums"),
        (("--pool-bytes", "many"), "CONFIG_INVALID: pool_bytes=many"),
        (("--pool-bytes", "900TiB"), "POOL_TOO_LARGE: pool_bytes="),
        (("--pool-bytes", "1MiB", "--device", "tpu"), "CONFIG_INVALID: device=tpu"),
        (("--pool-bytes", "1MiB", "--metrics-listen", "here"), "CONFIG_INVALID: metrics_listen=here"),
        (("--pool-bytes", "1MiB", "--max-leases", "0"), "CONFIG_INVALID: max_leases=0"),
        (("--pool-bytes", "1MiB", "--backend", "UCX", "--path", "nixl"), "CONFIG_INVALID: path=nixl"),
        (("--pool-bytes", "1MiB", "--backend", "MPI"), "CONFIG_INVALID: backend=MPI"),
        (("--pool-bytes", "1MiB", "--nixl-backend", "GDS"), "CONFIG_INVALID: nixl_backend=GDS"),
        (
            ("--pool-bytes", "1MiB", "--backend", "UCX", "--ucx-library", "/nowhere/libucp.so.0"),
            "CONFIG_INVALID: ucx_library=/nowhere/libucp.so.0: no usable UCX",
        ),
        (("--pool-bytes", "1MiB", "--backend", "UCX", "--nixl-backend", "UCX"), "CONFIG_INVALID: nixl_backend=UCX"),
    ],
)
def test_bad_flags_are_refused(tmp_path: Path, flags: tuple[str, ...], expected: str) -> None:
    """A wrong value ends the process with status 2 and a line that names field and value."""
    status, line = _refusal("--socket", str(tmp_path / "s"), *flags)
    assert 2 == status
    assert expected in line


def test_a_taken_socket_is_refused(tmp_path: Path) -> None:
    """A socket path on which a live process listens is refused as ADDRESS_IN_USE."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        status, line = _refusal("--pool-bytes", "1MiB", "--socket", str(path))
    assert 2 == status
    assert f"ADDRESS_IN_USE: socket={path}" in line


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    """A metrics port on which a live process listens is refused as ADDRESS_IN_USE."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = f"127.0.0.1:{listening.getsockname()[1]}"
        flags = ("--pool-bytes", "1MiB", "--socket", str(tmp_path / "s"), "--metrics-listen", where)
        status, line = _refusal(*flags)
    assert 2 == status
    assert f"ADDRESS_IN_USE: metrics_listen={where}" in line
