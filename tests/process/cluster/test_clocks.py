"""Wall clocks that jump: of the workers, while etcd's, the engines' and the routers' stay."""

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from kvferry import Reason
from kvferry.core.errors import KvferryError
from tests.process.cluster.pair import Pair, eventually, running_pair
from tests.process.shifted_clock import ShiftedClock

DAY_S = 86_400
LEASE_TTL_S = 3
"""A busy machine may hold a worker up for longer than the least that there is."""
LONG_S, SHORT_S, PULL_S = 60.0, 2.0, 0.7


async def wrong_by_days(pair: Pair) -> int:
    """How far the destination's wall clock is from ours, by its newest transfer."""
    (newest,) = await pair.router.of_worker(pair.decode.name).transfers(limit=1)
    assert newest.end_time is not None
    return round((newest.end_time - datetime.datetime.now(datetime.UTC)) / datetime.timedelta(days=1))


async def incarnations(pair: Pair) -> list[tuple[str, str, int]]:
    """Name, state and incarnation of every worker."""
    return [(worker.name, worker.state, worker.incarnation) for worker in await pair.router.workers()]


@pytest.mark.long
async def test_jumps_of_the_wall_clock_are_shown_and_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two days forth and back: leases and deadlines end when they would have, no sooner and no later; nobody is taken
    for lost; only the times that are shown jump."""
    clock = ShiftedClock(tmp_path, monkeypatch)
    async with running_pair(lease_ttl_s=LEASE_TTL_S) as pair:
        before = await incarnations(pair)
        lasting = await pair.publish([1], ttl_s=LONG_S, readers=0)
        for days in (2, -2):
            ending = await pair.publish([2], ttl_s=SHORT_S, readers=0)
            clock.jump(days * DAY_S)
            await pair.destination.pull(ending.handle, [2], timeout_s=5)
            assert days == await wrong_by_days(pair)
            assert "expired" == (await pair.source.wait_ended(ending, timeout_s=10)).state
            assert before == await incarnations(pair)
            await a_deadline_holds_over(lambda: clock.jump(0), pair, lasting.handle)

            async def nobody_is_lost() -> bool:
                return before == await incarnations(pair)

            await eventually(nobody_is_lost, "the paused data planes are back, and every worker is the same")
            await pair.destination.pull(lasting.handle, [1], timeout_s=10)


async def a_deadline_holds_over(jump: Callable[[], None], pair: Pair, handle: bytes) -> None:
    """A pull whose reads stand still ends in time, though the clock jumps meanwhile."""
    for plane in pair.decode.data_planes.values():
        plane.pause()
    try:
        pull = await pair.destination.start_pull(handle, [3], timeout_s=PULL_S)
        jump()
        with pytest.raises(KvferryError) as caught:
            async with asyncio.timeout(10):
                await pull.wait()
    finally:
        for plane in pair.decode.data_planes.values():
            plane.resume()
    assert Reason.DEADLINE_EXCEEDED == caught.value.reason
