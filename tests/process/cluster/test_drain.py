"""A worker that is taken out of service: what it refuses, what it finishes, and when its processes end."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kvferry import Draining, DrainState, EngineClient, WorkerDraining
from kvferry.core.errors import KvferryError
from kvferry.core.reasons import Reason
from kvferry.launch.child import Child
from tests.process.cluster.pair import RANKS, Pair, differing, eventually, layout_of, ready, running_pair
from tests.process.demo.commands import finished, kvferry

DRAIN_S = 40.0
END_S = 10.0
"""Bound on the end of a process that has nothing left."""


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    """A pair of its own for each test, that drains when it is told to end."""
    async with running_pair(lease_ttl_s=2, drain_timeout_s=DRAIN_S) as running:
        try:
            yield running
        finally:
            await kill_all(running)


async def kill_all(pair: Pair) -> None:
    """End every process that is left; nobody shall wait for a drain that the test has seen enough of."""
    for worker in (pair.prefill, pair.decode):
        for child in worker.children:
            if child.status is None:
                await child.kill()


def terminate(*children: Child) -> None:
    """SIGTERM."""
    for child in children:
        child.send_signal(signal.SIGTERM)


async def ended(*children: Child) -> list[int]:
    """The exit statuses, once all have ended."""
    async with asyncio.timeout(END_S):
        return [await child.wait() for child in children]


async def state_of(pair: Pair, name: str) -> str:
    """What routers see, at the other worker's control."""
    async with asyncio.timeout(END_S):
        async for view in pair.router.watch_workers():
            return next((w.state for w in view.workers if w.name == f"workers/{name}"), "gone")
    raise AssertionError


async def shown_as(pair: Pair, name: str, state: str) -> None:
    """Wait until routers see a worker in a state."""

    async def is_shown() -> bool:
        return state == await state_of(pair, name)

    await eventually(is_shown, f"{name} is {state}")


async def told_to_drain(engine: EngineClient) -> None:
    """Wait until the engine's worker takes no more work."""

    async def refused() -> bool:
        try:
            await engine.publish([100], 16, 1.0)
        except Draining:
            return True
        return False

    await eventually(refused, "new work is refused")


async def test_a_worker_whose_processes_are_all_terminated_at_once(pair: Pair) -> None:
    """Told to end together, control and data planes refuse new work, let what is published be pulled, and end with
    status 0; the engine is told, and routers see DRAINING, then nothing."""
    await pair.fill([1, 2, 3], seed=3)
    views = await pair.views()
    events = pair.source.events()
    publication = await pair.source.publish([1, 2, 3], 48, 60.0, 1, request_id="before")
    children = (pair.prefill.control, *pair.prefill.data_planes.values())
    terminate(*children)
    await shown_as(pair, "prefill-0", "draining")
    assert [] == await pair.router.pairs(compatible_only=True)
    assert [("workers/prefill-0",)] == [found.draining for found in await pair.router.pairs(compatible_only=False)]
    event = await asyncio.wait_for(anext(events), 5)
    assert isinstance(event, WorkerDraining)
    assert event.draining
    with pytest.raises(Draining) as refused:
        await pair.publish([9])
    assert Reason.DRAINING is refused.value.reason
    again = await pair.source.publish([1, 2, 3], 48, 60.0, 1, request_id="before")
    assert publication.name == again.name
    assert [None] * (1 + RANKS) == [child.status for child in children]
    await pair.destination.pull(publication.handle, [4, 5, 6], timeout_s=10)
    assert 0 == differing(views, [1, 2, 3], [4, 5, 6])
    assert [0] * (1 + RANKS) == await ended(*children)
    await shown_as(pair, "prefill-0", "gone")


async def test_a_running_pull_finishes(pair: Pair) -> None:
    """Told to end together while a pull is still being negotiated, a decode worker's processes refuse new pulls, stay
    for this one, which delivers the right bytes, and then end with status 0."""
    await pair.fill([1, 2], seed=4)
    await pair.poison([3, 4], 0)
    views = await pair.views()
    publication = await pair.publish([1, 2], ttl_s=60, readers=0)
    children = (pair.decode.control, *pair.decode.data_planes.values())
    pair.prefill.control.pause()
    pull = await pair.destination.start_pull(publication.handle, [3, 4], timeout_s=20)
    terminate(*children)
    await told_to_drain(pair.destination)
    with pytest.raises(Draining):
        await pair.destination.pull(publication.handle, [7, 8], timeout_s=1)
    pair.prefill.control.resume()
    assert "succeeded" == (await pull.wait()).state
    assert 0 == differing(views, [1, 2], [3, 4])
    assert [0] * (1 + RANKS) == await ended(*children)


@pytest.mark.long
async def test_a_second_signal_hurries(pair: Pair) -> None:
    """A second SIGTERM ends what is left: the leases are cleared, and the processes end with status 0."""
    publication = await pair.publish([1, 2], ttl_s=600, readers=0)
    children = (pair.prefill.control, *pair.prefill.data_planes.values())
    terminate(*children)
    await shown_as(pair, "prefill-0", "draining")
    assert [None] * (1 + RANKS) == [child.status for child in children]
    terminate(pair.prefill.control)
    assert "released" == (await pair.source.wait_ended(publication, timeout_s=5)).state
    assert [0] * (1 + RANKS) == await ended(*children)
    with pytest.raises(KvferryError):
        await pair.destination.pull(publication.handle, [5, 6], timeout_s=2)


@pytest.mark.long
async def test_hurried_reads_end_typed(pair: Pair) -> None:
    """A decode worker that is hurried cancels its reads, and its engine hears of each end, typed and settled."""
    publication = await pair.publish([1], ttl_s=600, readers=0)
    for child in pair.prefill.children:
        child.pause()
    pull = await pair.destination.start_pull(publication.handle, [1], timeout_s=60)
    terminate(pair.decode.control)
    await told_to_drain(pair.destination)
    terminate(pair.decode.control)
    with pytest.raises(Draining) as caught:
        await pull.wait()
    assert caught.value.metadata["transfer"] == pull.name
    assert [0] == await ended(pair.decode.control)


@pytest.mark.long
async def test_one_data_plane_that_is_told_to_end(pair: Pair) -> None:
    """A data plane alone that gets SIGTERM makes its worker DRAINING, stays for its leases and then ends; its
    successor brings the worker back."""
    publication = await pair.publish([1], ttl_s=60)
    plane = pair.prefill.data_planes[1]
    terminate(plane)
    await shown_as(pair, "prefill-0", "draining")
    with pytest.raises(Draining):
        await pair.publish([2])
    await pair.destination.pull(publication.handle, [1], timeout_s=10)
    assert [0] == await ended(plane)
    await pair.prefill.start_data_plane(1)
    await ready(pair.workers, ["prefill-0"])
    await pair.fill([2], seed=8)
    fresh = await pair.publish([2])
    await pair.destination.pull(fresh.handle, [2], timeout_s=10)
    assert 0 == await pair.differing([2], [2])


async def test_the_command_drains_and_undoes(pair: Pair) -> None:
    """`kvferry drain --stay` leaves the control up, `--undo` brings the worker back, and `drain --wait` shows what is
    left and returns once the control has nothing left, which then ends with status 0."""
    endpoint = pair.decode.endpoint
    worker = pair.router.of_worker("prefill-0")
    publication = await pair.publish([1], ttl_s=60)
    assert 0 == (await run_command("drain", "prefill-0", "--endpoint", endpoint, "--stay"))[0]
    await shown_as(pair, "prefill-0", "draining")
    assert 0 == (await run_command("drain", "prefill-0", "--endpoint", endpoint, "--undo"))[0]
    await ready(pair.workers, ["prefill-0"])
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(run_command("drain", "prefill-0", "--endpoint", endpoint, "--wait"))
        await shown_as(pair, "prefill-0", "draining")
        async for status in worker.watch_drain():
            assert (DrainState.DRAINING, 1) == (status.state, status.live_publication_count)
            break
        await pair.source.release(publication)
    code, output = waiting.result()
    assert 0 == code, output
    assert "1 publications" in output
    assert "drained: 0 publications" in output
    assert [0] == await ended(pair.prefill.control)
    for child in pair.prefill.data_planes.values():
        child.check_running()


@pytest.mark.long
async def test_the_command_waits_for_a_worker_that_has_nothing_left(pair: Pair) -> None:
    """`kvferry drain --wait` of a worker that holds nothing hears that it is drained: its control ends at once."""
    code, output = await run_command("drain", "prefill-0", "--endpoint", pair.decode.endpoint, "--wait")
    assert 0 == code, output
    assert "drained: 0 publications" in output
    assert "none" not in output
    assert [0] == await ended(pair.prefill.control)


async def run_command(*arguments: str) -> tuple[int, str]:
    """Status and output of ``kvferry ARGUMENTS``."""
    async with kvferry(*arguments) as process:
        status, output, complaints = await finished(process)
    return status, output + complaints


@pytest.mark.long
async def test_what_outlasts_the_drain_is_ended() -> None:
    """After the drain's time-out a publication that nobody pulled is ended and the control exits with status 0."""
    async with running_pair(lease_ttl_s=2, drain_timeout_s=1.0) as pair:
        publication = await pair.publish([1], ttl_s=600)
        terminate(pair.prefill.control)
        assert "released" == (await pair.source.wait_ended(publication, timeout_s=5)).state
        assert [0] == await ended(pair.prefill.control)
        # The data planes stay, and what comes next takes work again.
        await pair.prefill.start_control()
        await ready(pair.workers, ["prefill-0"])
        async with EngineClient.connect(pair.prefill.engine_socket, "engine-prefill-0", layout_of()) as engine:
            assert [] == await engine.held_publications()
        await kill_all(pair)
