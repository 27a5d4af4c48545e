"""What ranks have attested, put together, and what floors make of it."""

import asyncio

import pytest

from kvferry.core.errors import PathRefused
from kvferry.core.path_floor import path_floor
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.rpc.times import duration
from kvferry.transfer.v1 import transfer_pb2
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry_control.peers.attested import Attested


def route(rate: float, transport: str = "cma", *, degraded: bool = False) -> pb.AttestedRoute:
    """A way by NIXL."""
    return pb.AttestedRoute(
        path=transfer_pb2.PATH_NIXL,
        backend="UCX",
        transport=transport,
        gbytes_per_s=rate,
        small_gbytes_per_s=rate / 10,
        latency=duration(1e-4 / rate),
        degraded=degraded,
        rank_pair_count=1,
    )


def found(*routes: pb.AttestedRoute, refusal: str = "") -> dp.PeerAttested:
    """What a data plane tells."""
    return dp.PeerAttested(routes=routes, refusal=refusal)


def attested(**pairs: dp.PeerAttested) -> Attested:
    """By pairs named like `r0_1`: rank 0 of this worker, 1 of the source."""
    made = Attested()
    for name, told in pairs.items():
        rank, source = name.removeprefix("r").split("_")
        made.take((int(rank), int(source)), told)
    return made


def test_pairs_of_ranks_alike_are_one_way_as_fast_as_the_slowest() -> None:
    """A transport that only one pair uses stays visible."""
    known = attested(r0_0=found(route(5)), r0_1=found(route(4, degraded=True)), r1_0=found(route(1, "tcp")))
    cma, tcp = known.routes()
    assert (4.0, 2, True) == (cma.gbytes_per_s, cma.rank_pair_count, cma.degraded)
    assert ("tcp", 1) == (tcp.transport, tcp.rank_pair_count)


def test_the_first_pair_below_the_floor_is_named() -> None:
    """The refusal names the ranks, and both values."""
    known = attested(r0_0=found(route(5)), r0_1=found(route(1, "tcp")))
    with pytest.raises(PathRefused, match="rank 1 to rank 0") as refusal:
        known.require([(0, 0), (0, 1)], path_floor([], 2.0), "p")
    assert {"field": "min_gbytes_per_s", "source": "1 GB/s on nixl/UCX:tcp", "destination": "2 GB/s"} == (
        refusal.value.metadata
    )
    known.require([(0, 0)], path_floor([], 2.0), "p")


@pytest.mark.parametrize(
    ("known", "why"),
    [({}, "has not ended in time"), ({"r0_0": found(refusal="PEER_LOST: gone")}, "PEER_LOST: gone")],
    ids=["nothing", "refusal"],
)
def test_what_is_not_known_is_refused(known: dict[str, dp.PeerAttested], why: str) -> None:
    """With a floor, a pair that could not be attested is refused, and the refusal says why it was not."""
    with pytest.raises(PathRefused, match=why):
        attested(**known).require([(0, 0)], path_floor([], 2.0), "p")


async def test_a_wait_ends_with_the_last_pair_or_in_time() -> None:
    """Whoever waits for pairs of ranks goes on once all are there, or when the time is over."""
    known = Attested()
    waiting = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await known.wait([(0, 0), (0, 1)], 30.0)
        waiting.set_result(None)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(wait())
        for pair in ((0, 0), (0, 1)):
            await asyncio.sleep(0)
            assert not waiting.done()
            known.take(pair, found(route(1)))
        await waiting
    await known.wait([(5, 5)], 0.01)


def test_a_data_planes_attestations_end_with_it() -> None:
    """What a rank told in an earlier life is forgotten; what could not be attested is asked for again."""
    known = attested(r0_0=found(route(5)), r1_0=found(refusal="no answer"))
    assert "no answer" == known.refusal()
    assert known.forget_refused([(0, 0), (1, 0)])
    assert not known.forget_refused([(0, 0), (1, 0)])
    assert known.is_known
    known.forget(0)
    assert not known.is_known
