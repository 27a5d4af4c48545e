"""A data plane is told whose it is in one order, although calls to it may overtake one another."""

import asyncio
from unittest.mock import Mock

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry_control.ranks.link import RankLink


class SlowFirst:
    """A data plane that the first call reaches only when a test says so."""

    def __init__(self) -> None:
        self.arrives = asyncio.Event()
        self.calls = 0
        self.told: list[int] = []

    async def adopt(self, request: pb.AdoptRequest, timeout: float) -> None:  # noqa: ASYNC109 - gRPC's
        """Take the call."""
        assert timeout > 0
        self.calls += 1
        if self.calls == 1:
            await self.arrives.wait()
        self.told.append(request.adoption.incarnation)


async def reaching(plane: SlowFirst) -> RankLink:
    """A link to it."""
    link = RankLink(0, "/nowhere", Mock())
    await link._channel.close()
    link._stub = Mock(Adopt=plane.adopt)
    return link


async def test_what_is_told_last_is_what_holds() -> None:
    """The second waits for the first, and says what is true when its turn has come."""
    plane = SlowFirst()
    link = await reaching(plane)
    now = 1
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(link.adopt(lambda: pb.Adoption(incarnation=now)))
        await asyncio.sleep(0)
        now = 2
        tasks.create_task(link.adopt(lambda: pb.Adoption(incarnation=now)))
        await asyncio.sleep(0)
        now = 3
        await asyncio.sleep(0)
        assert plane.calls == 1
        plane.arrives.set()
    assert [1, 3] == plane.told


async def test_one_that_is_given_up_lets_the_next_go() -> None:
    """Whoever stops waiting for an adoption holds up no other."""
    plane = SlowFirst()
    link = await reaching(plane)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(link.adopt(lambda: pb.Adoption(incarnation=1)))
        await asyncio.sleep(0)
        first.cancel()
    await link.adopt(lambda: pb.Adoption(incarnation=2))
    assert [2] == plane.told
