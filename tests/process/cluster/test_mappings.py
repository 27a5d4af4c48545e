"""Which pools of other workers a data plane of the same host has mapped."""

from pathlib import Path

import pytest

from tests.process.cluster.pair import RANKS, Pair, eventually, running_pair


def mapped_pools(pair: Pair) -> list[int]:
    """Pools that each of the destination's data planes has mapped, its own included."""
    counts = []
    for rank in range(RANKS):
        maps = Path(f"/proc/{pair.decode.data_planes[rank].pid}/maps").read_text().splitlines()
        counts.append(len({line.split()[4] for line in maps if "memfd:kvferry-pool" in line}))
    return counts


@pytest.mark.long
async def test_the_pool_of_a_worker_that_left_the_cluster_is_unmapped() -> None:
    """Once a source's registration in etcd has ended its pools are unmapped, although its data planes live on."""
    async with running_pair(lease_ttl_s=1) as pair:
        await pair.fill([1, 2], seed=1)
        publication = await pair.publish([1, 2])
        result = await pair.destination.pull(publication.handle, [3, 4], timeout_s=10)
        assert "local" == result.path
        assert all(count > 1 for count in mapped_pools(pair))
        await pair.prefill.control.kill()
        await eventually(lambda: mapped_pools(pair) == [1] * RANKS, "only its own pool is mapped")
        for rank in range(RANKS):
            pair.prefill.data_planes[rank].check_running()
