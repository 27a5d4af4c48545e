"""Control and data plane stay awake between messages for as long as they are told to, and no longer."""

import asyncio
from functools import partial

from kvferry.bench.processes import CpuSample
from tests.process.cluster.pair import eventually, running_pair

POLL_S = 0.1
"""The longest there is, so that it shows in the CPU time on a machine that is busy with other tests."""
GAP_S = 0.05
PULLS = 20
AWAKE_SHARE = 0.15
"""Of a core. Not polling, such pulls take less than a twentieth."""
ASLEEP_SHARE = 0.1
WATCHED_S = 0.5


async def test_polling_ends_with_the_messages() -> None:
    """Between pulls both are busy; when there are none any more, neither is. The bytes are those of any pull."""
    limits, flags = {"poll_s": POLL_S}, ("--poll-time", str(POLL_S))
    async with running_pair(limits=limits, data_plane_flags=flags) as pair:
        pids = {"control": pair.decode.control.pid, "data plane": pair.decode.data_planes[0].pid}
        blocks = [1, 2, 3]
        await pair.fill(blocks, seed=1)
        publication = await pair.publish(blocks, readers=0)
        await pair.destination.pull(publication.handle, [7, 8, 9], timeout_s=10)
        assert await pair.differing(blocks, [7, 8, 9]) == 0
        begun = CpuSample.of(pids)
        for _ in range(PULLS):
            await pair.destination.pull(publication.handle, [7, 8, 9], timeout_s=10)
            await asyncio.sleep(GAP_S)
        use = CpuSample.of(pids).since(begun)
        for name, pid in pids.items():
            assert use.share_of_core(name) > AWAKE_SHARE, f"{name} slept"
            await eventually(partial(_is_asleep, pid), f"{name} sleeps")


async def _is_asleep(pid: int) -> bool:
    before = CpuSample.of({"it": pid})
    await asyncio.sleep(WATCHED_S)
    return CpuSample.of({"it": pid}).since(before).share_of_core("it") < ASLEEP_SHARE
