"""The doctor looks at this machine, at a real etcd and at real data planes."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from kvferry.core.backends import Transport
from kvferry.dev.etcd_server import EtcdServer
from tests.process.cluster.pair import Pair, running_pair
from tests.process.doctor.commands import KVFERRY, diagnose
from tests.process.launch.capabilities import needs_namespaces

AREAS = {"etcd", "nixl", "transport", "ucx", "limits", "memory", "namespaces", "gpu", "clock", "versions"}
DEAD = "127.0.0.1:1"


def config_of(pair: Pair) -> str:
    """The decode worker's configuration."""
    return str(pair.decode.directory / f"{pair.decode.name}.toml")


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    """A single etcd."""
    with EtcdServer() as started:
        yield started


def test_every_area_is_looked_at(server: EtcdServer) -> None:
    """A healthy etcd is found, with version and latency; plugins that do not load have the loader's words."""
    found = diagnose("--etcd", server.endpoint)
    assert {finding.partition(".")[0] for finding in found.findings} >= AREAS
    assert ["OK"] * 2 == [found.status_of(f"etcd.{name}") for name in ("reachable", "version")]
    assert found.findings["etcd.latency"]["values"]["latency_ms"] > 0
    assert "OK" == found.status_of("clock.skew")
    assert "OK" == found.status_of("transport.nixl_ucx")
    assert "tcp" in found.findings["ucx.transports"]["values"]["transports"]
    assert {"OK": 0, "SLOW": 3, "BROKEN": 4}[found.whole["worst"]] == found.status == found.whole["exit_status"]


def test_a_dead_etcd_is_broken_and_the_rest_is_looked_at() -> None:
    """Nobody listens: status 4, and the finding names the endpoint."""
    found = diagnose("--etcd", f"{DEAD}")
    assert (4, "BROKEN", "SKIPPED") == (found.status, found.status_of("etcd.reachable"), found.status_of("clock.skew"))
    assert DEAD in found.findings["etcd.reachable"]["found"]
    assert "OK" == found.status_of("transport.nixl_ucx")


@pytest.mark.long
def test_a_frozen_etcd_costs_a_few_seconds() -> None:
    """A member that was stopped does not hold the doctor up."""
    with EtcdServer() as frozen:
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            found = diagnose("--etcd", frozen.endpoint)
            assert "BROKEN" == found.status_of("etcd.reachable")
            assert time.monotonic() - started < 30
        finally:
            os.kill(frozen.pid, signal.SIGCONT)


def test_tcp_alone_is_slow_and_no_tcp_is_broken() -> None:
    """UCX_TLS as the environment has it is what counts."""
    only = diagnose(environment={"UCX_TLS": "tcp"}).findings["ucx.transports"]
    assert ("SLOW", True) == (only["status"], "UCX_TLS=tcp leaves out" in only["found"])
    refused = diagnose(environment={"UCX_TLS": "cma"})
    assert "BROKEN" == refused.status_of("ucx.transports")
    assert ("BROKEN", 4) == (refused.status_of("transport.nixl_ucx"), refused.status)


@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.long
def test_a_transport_can_be_used_or_says_what_it_lacks(transport: Transport) -> None:
    """As a data plane that is told to use it: one that cannot be opened is a fault there, and its words are told."""
    backend = ("--backend", "UCX") if transport is Transport.UCX else ("--nixl-backend", transport.backend)
    wanted = diagnose(*backend).findings[f"transport.{transport.value.replace('/', '_').lower()}"]
    values = wanted["values"]
    assert values["wanted"]
    if wanted["status"] == "OK":
        assert values["version"]
    else:
        assert ("BROKEN", True) == (wanted["status"], bool(values["error"]) and values["error"] in wanted["found"])


@needs_namespaces
def test_a_container_is_seen_as_one() -> None:
    """Own namespaces are named, and a /dev/shm without room for UCX is slow."""
    small = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    inside = ("unshare", "--ipc", "--pid", "--mount", "--fork", "--mount-proc", "sh", "-c", small, "doctor")
    found = diagnose(launcher=inside)
    assert {"ipc": "own", "pid": "own"}.items() <= found.findings["namespaces.shared"]["values"].items()
    assert "SLOW" == found.status_of("memory.shm")
    assert "OK" == found.status_of("transport.nixl_ucx")


@pytest.mark.long
async def test_the_workers_data_planes_are_asked_and_not_disturbed() -> None:
    """With a control's configuration its data planes answer, and pulls go on meanwhile."""
    async with running_pair() as pair:
        asked = asyncio.get_running_loop().run_in_executor(None, diagnose, "--config", config_of(pair))
        while not asked.done():
            publication = await pair.publish([1])
            await pair.destination.pull(publication.handle, [1], timeout_s=10)
        found = await asked
    assert ["OK"] * 2 == [found.status_of(f"dataplane.{rank}.reachable") for rank in range(2)]
    assert "OK" == found.status_of("etcd.reachable")


@pytest.mark.long
async def test_a_frozen_data_plane_is_broken() -> None:
    """The one that answers is told apart from the one that does not."""
    async with running_pair() as pair:
        pair.decode.data_planes[1].pause()
        frozen = await asyncio.to_thread(diagnose, "--config", config_of(pair))
    assert ["OK", "BROKEN"] == [frozen.status_of(f"dataplane.{rank}.reachable") for rank in range(2)]


def test_people_get_lines_without_colours_in_a_pipe() -> None:
    """A fault says what was found, what it costs and what to do."""
    command = [*KVFERRY, "doctor", "--etcd", DEAD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert 4 == done.returncode
    fault = done.stdout.partition("BROKEN  etcd.reachable")[2].partition("\nOK ")[0]
    assert ["costs:", "do:"] == [word for word in fault.split() if word in {"costs:", "do:"}]
    assert "\x1b" not in done.stdout
