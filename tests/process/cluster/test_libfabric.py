"""Pulls between two workers on both sides of a wire, over NIXL's LIBFABRIC backend."""

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kvferry import PullFailed
from kvferry.core.reasons import Reason
from kvferry.launch.namespaces import NamespacePair
from tests.process.cluster.pair import BLOCK_BYTES, BLOCK_COUNT, RANKS, Pair, eventually, running_pair
from tests.process.launch.capabilities import needs_namespaces

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_namespaces]

TIMEOUT_S = 10.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    """Both workers, which read over LIBFABRIC whatever they could do besides."""
    flags = ("--nixl-backend", "LIBFABRIC", "--path", "nixl", "--same-host", "backend")
    with NamespacePair() as wire:
        async with running_pair(wire=wire, data_plane_flags=flags) as running:
            yield running


async def test_the_bytes_arrive_over_libfabric(pair: Pair) -> None:
    """A pull of scattered blocks delivers exactly the published bytes, and says over what."""
    source, destination = [7, 3, 500, 501], [10, 20, 30, 31]
    await pair.fill(source, seed=1)
    publication = await pair.publish(source)
    result = await pair.destination.pull(publication.handle, destination, timeout_s=TIMEOUT_S)
    assert 0 == await pair.differing(source, destination)
    assert RANKS * 4 * BLOCK_BYTES == result.received_bytes
    assert ("nixl", "LIBFABRIC") == (result.path, result.backend)


async def test_a_killed_source_ends_the_pull_in_time(pair: Pair) -> None:
    """A pull whose source's data planes are killed ends as PEER_LOST, at most a second after its deadline, settled."""
    blocks = list(range(BLOCK_COUNT))
    for rank in range(RANKS):
        (await pair.pool(pair.source, rank))[:] = 1
    await pair.poison(blocks, 0)
    arrived = await pair.pool(pair.destination, 0)
    publication = await pair.publish(blocks)
    data_planes = list(pair.prefill.data_planes.values())
    started = time.monotonic()
    pull = await pair.destination.start_pull(publication.handle, blocks, timeout_s=TIMEOUT_S)
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
