"""Network namespaces: two sides and a wire, and nothing of them left afterwards."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry.launch.child import Child
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.namespaces import NamespacePair
from kvferry.launch.worker import WorkerSpec
from kvferry.sdk.router import RouterClient
from tests.process.launch.capabilities import needs_namespaces

NAMES = Path("/run/netns")


def existing() -> set[str]:
    """Namespaces of this process."""
    return {path.name for path in NAMES.glob(f"kvferry-{os.getpid()}-*")}


@needs_namespaces
def test_two_sides_reach_each_other_and_nobody_else() -> None:
    """What listens on one side is reached from the other, and not from the machine's own network."""
    with NamespacePair() as pair, pair.source.call(lambda: socket.create_server((pair.source.address, 0))) as server:
        address = server.getsockname()
        with pair.destination.call(lambda: socket.create_connection(address, timeout=5.0)) as client:
            client.sendall(b"over the wire")
            accepted, _ = server.accept()
            with accepted:
                assert b"over the wire" == accepted.recv(64)
        with pytest.raises(OSError, match=r"timed out|unreachable|refused"):
            socket.create_connection(address, timeout=0.2)


@needs_namespaces
def test_leaving_removes_both_even_after_an_error() -> None:
    """An exception inside leaves no namespace behind."""
    before = existing()
    inside: set[str] = set()

    def fail() -> None:
        with NamespacePair() as pair:
            assert {pair.source.name, pair.destination.name} == existing() - before
            inside.update(existing())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert 2 == len(inside - before)
    assert before == existing()


@needs_namespaces
def test_leftovers_of_dead_processes_are_removed() -> None:
    """Namespaces that a killed process could not remove go when the next pair is made."""
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; from kvferry.launch.namespaces import NamespacePair; p = NamespacePair(); p.__enter__();"
            "print(p.source.name, p.destination.name, flush=True); os.kill(os.getpid(), 9)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    left = killed.stdout.split()
    assert [True, True] == [(NAMES / name).exists() for name in left]
    with NamespacePair():
        assert [False, False] == [(NAMES / name).exists() for name in left]


def test_without_the_program_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `ip` cannot be found, or without root, the refusal names what is missing."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ConfigInvalid, match=r"network=namespaces: .*(iproute2|root)"), NamespacePair():
        pass


@needs_namespaces
async def test_a_child_runs_in_its_namespace(tmp_path: Path) -> None:
    """A child started with a namespace's launcher sees its interfaces alone, and is the process that is signalled."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys, time\n"
        "said = {'interfaces': sorted(os.listdir('/sys/class/net')), 'pid': os.getpid()}\n"
        "os.write(int(sys.argv[-1]), json.dumps(said).encode() + b'\\n')\n"
        "time.sleep(60)\n"
    )
    with NamespacePair() as pair:
        child = await Child.start("probe", [str(script)], tmp_path / "log", launcher=pair.source.launcher)
        await child.stop()
    assert {"interfaces": ["lo", "wire0"], "pid": child.pid} == child.ready


@needs_namespaces
async def test_workers_on_two_sides_find_each_other() -> None:
    """A worker beside etcd and one on the other side of the wire both come into the cluster's view."""
    with NamespacePair() as pair:
        async with LocalCluster(etcd_namespace=pair.source) as cluster:
            for name, role, side in (("far", "prefill", pair.source), ("near", "decode", pair.destination)):
                await cluster.start_worker(WorkerSpec(name=name, role=role, namespace=side, listen=side.listen))
            near = cluster.workers["near"]
            async with RouterClient(f"unix:{near.engine_socket}") as router:
                async for view in router.watch_workers():
                    if len(view.workers) == 2:
                        break
            found = {worker.name: worker.endpoint.rpartition(":")[0] for worker in view.workers}
    assert {"workers/far": "192.0.2.1", "workers/near": "192.0.2.2"} == found
