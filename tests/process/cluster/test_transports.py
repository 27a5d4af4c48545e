"""Pulls between two workers on both sides of a wire, over each transport, and between workers of different ones."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from kvferry import PullFailed
from kvferry.core.reasons import Reason
from kvferry.launch.namespaces import NamespacePair
from tests.process.cluster.pair import BLOCK_BYTES, BLOCK_COUNT, RANKS, Pair, eventually, running_pair
from tests.process.launch.capabilities import needs_namespaces

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_namespaces]

TIMEOUT_S = 10.0
BACKEND = ("--same-host", "backend")
TRANSPORTS = {
    "nixl-ucx": (("--path", "nixl"), ("nixl", "UCX")),
    "nixl-libfabric": (("--nixl-backend", "LIBFABRIC", "--path", "nixl"), ("nixl", "LIBFABRIC")),
    "ucx": (("--backend", "UCX", "--path", "ucx"), ("ucx", "UCX")),
}
"""Flags of the data planes, and what results say of them."""


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["nixl-libfabric", *(pytest.param(name, marks=pytest.mark.long) for name in ("nixl-ucx", "ucx"))],
)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Pair, tuple[str, str]]]:
    """Both workers, which read over one transport whatever they could do besides; and how results name it."""
    flags, named = TRANSPORTS[request.param]
    with NamespacePair() as wire:
        async with running_pair(wire=wire, data_plane_flags=(*flags, *BACKEND)) as running:
            yield running, named


async def test_the_bytes_arrive_and_the_result_says_over_what(pair: tuple[Pair, tuple[str, str]]) -> None:
    """A pull of scattered blocks delivers exactly the published bytes."""
    workers, named = pair
    source, destination = [7, 3, 500, 501], [10, 20, 30, 31]
    await workers.fill(source, seed=1)
    publication = await workers.publish(source)
    result = await workers.destination.pull(publication.handle, destination, timeout_s=TIMEOUT_S)
    assert 0 == await workers.differing(source, destination)
    assert RANKS * 4 * BLOCK_BYTES == result.received_bytes
    assert named == (result.path, result.backend)


async def test_a_killed_source_ends_the_pull_in_time(pair: tuple[Pair, tuple[str, str]]) -> None:
    """A pull whose source's data planes are killed ends as PEER_LOST, at most a second after its deadline, settled."""
    workers, _ = pair
    blocks = list(range(BLOCK_COUNT))
    for rank in range(RANKS):
        (await workers.pool(workers.source, rank))[:] = 1
    await workers.poison(blocks, 0)
    arrived = await workers.pool(workers.destination, 0)
    publication = await workers.publish(blocks)
    data_planes = list(workers.prefill.data_planes.values())
    started = time.monotonic()
    pull = await workers.destination.start_pull(publication.handle, blocks, timeout_s=TIMEOUT_S)
    await eventually(lambda: bool(arrived[:, -1].any()), "a block has arrived", pause_s=0.001)
    for data_plane in data_planes:
        data_plane.pause()
    assert not pull.done(), "the pull was over before its source stopped"
    for data_plane in data_planes:
        await data_plane.kill()
    with pytest.raises(PullFailed) as caught:
        await pull.wait()
    assert (Reason.PEER_LOST, True) == (caught.value.reason, caught.value.destination_settled)
    assert time.monotonic() - started < TIMEOUT_S + 1


@pytest.mark.long
async def test_workers_of_different_transports_are_refused_when_they_are_paired() -> None:
    """The pair's verdict and a pull name both sides' values; nothing is read over a slower way."""
    only: dict[str, dict[str, Any]] = {
        "prefill-0": {"data_plane_flags": BACKEND},
        "decode-0": {"data_plane_flags": ("--backend", "UCX", *BACKEND)},
    }
    async with running_pair(only=only) as workers:
        verdict = await workers.router.check_pair("prefill-0", "decode-0")
        assert [("transport", "nixl/UCX", "ucx")] == [(m.field, m.source, m.destination) for m in verdict.mismatches]
        publication = await workers.publish([1])
        with pytest.raises(PullFailed) as caught:
            await workers.destination.pull(publication.handle, [1], timeout_s=TIMEOUT_S)
        assert Reason.TRANSPORT_MISMATCH is caught.value.reason
        assert "transport: source has nixl/UCX, destination ucx" in caught.value.message
