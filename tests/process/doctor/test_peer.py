"""The doctor has two real workers move bytes on every path, and disturbs neither."""

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from kvferry.launch.worker import LocalWorker
from tests.process.cluster.pair import Pair, running_pair
from tests.process.doctor.commands import Diagnosis, diagnose


def config_of(worker: LocalWorker) -> str:
    """A worker's configuration."""
    return str(worker.directory / f"{worker.name}.toml")


async def examined(pair: Pair) -> Diagnosis:
    """What the doctor finds, run beside the decode worker, while pulls go on."""
    arguments = ("--config", config_of(pair.decode), "--peer", pair.prefill.name)
    asked = asyncio.get_running_loop().run_in_executor(None, diagnose, *arguments)
    while not asked.done():
        publication = await pair.publish([1])
        await pair.destination.pull(publication.handle, [1], timeout_s=30)
    return await asked


def paths(found: Diagnosis) -> dict[str, Mapping[str, Any]]:
    """Findings about paths, by path."""
    prefix = "peer.path."
    return {name.removeprefix(prefix): finding for name, finding in found.findings.items() if name.startswith(prefix)}


async def test_every_path_is_tried_and_pulls_go_on() -> None:
    """Between two workers of one host: mapped memory, UCX through the kernel, and the stream of a source that packs;
    each with what was used and its rate. Blocks are as before."""
    async with running_pair(pack_listen="127.0.0.1:0") as pair:
        await pair.fill([5], seed=7)
        before = (await pair.pool(pair.destination, 0))[5:].copy()
        found = await examined(pair)
        assert np.array_equal(before, (await pair.pool(pair.destination, 0))[5:])
    assert "OK" == found.status_of("peer.pairing")
    by_path = paths(found)
    assert {"local", "nixl", "packed"} == by_path.keys()
    used = {path: finding["values"]["transport"] for path, finding in by_path.items()}
    assert {"local": "memory", "nixl": "cma", "packed": "tcp"} == used
    for finding in by_path.values():
        assert finding["values"]["gbytes_per_s"] > 0
        assert finding["values"]["latency_us"] > 0
        assert 4 == len(finding["values"]["rank_pairs"])
    assert found.findings["ceiling.memory"]["values"]["gbytes_per_s"] > 0


@pytest.mark.parametrize("side", ["prefill", pytest.param("decode", marks=pytest.mark.long)])
async def test_tcp_forced_on_one_side_is_slow(side: str) -> None:
    """The finding has the rate, the ceiling and the share, and says whose UCX_TLS to unset."""
    async with running_pair(only={f"{side}-0": {"data_plane_environment": {"UCX_TLS": "tcp"}}}) as pair:
        found = await examined(pair)
    slow = paths(found)["nixl"]
    assert ("SLOW", "tcp") == (slow["status"], slow["values"]["transport"])
    values = slow["values"]
    assert 0 < values["gbytes_per_s"] < values["ceiling_gbytes_per_s"]
    assert slow["costs"].startswith(f"{values['gbytes_per_s']} GB/s where ")
    assert slow["do"].startswith(f"unset UCX_TLS=tcp for the data plane of workers/{side}-0 rank 0")
    assert found.whole["exit_status"] >= 3


@pytest.mark.long
async def test_a_path_that_is_impossible_has_its_reason() -> None:
    """A source that does not pack, and a destination that does not map."""
    async with running_pair(data_plane_flags=("--same-host", "backend")) as pair:
        found = paths(await examined(pair))
    assert ("SLOW", "NONE") == (found["local"]["status"], found["packed"]["status"])
    assert "same_host=backend is configured" in found["local"]["found"]
    assert "the source does not pack" in found["packed"]["found"]
    assert "cma" == found["nixl"]["values"]["transport"]


@pytest.mark.long
async def test_a_peer_that_is_not_there_is_broken() -> None:
    """Unknown workers, and a source whose data planes do not answer, end in findings and in time."""
    async with running_pair() as pair:
        config = config_of(pair.decode)
        unknown = await asyncio.to_thread(diagnose, "--config", config, "--peer", "nobody-0")
        for plane in pair.prefill.data_planes.values():
            plane.pause()
        frozen = await asyncio.to_thread(diagnose, "--config", config, "--peer", pair.prefill.name)
    assert ("BROKEN", True) == (unknown.status_of("peer.probe"), "nobody-0" in unknown.findings["peer.probe"]["found"])
    assert 4 == frozen.status
    assert {"peer.probe", "peer.no_path"} & frozen.findings.keys()
