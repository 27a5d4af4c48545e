"""What an earlier life of control or of the engine has begun writes to no block that was handed back, or taken anew."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from kvferry import EngineClient, RouterClient
from kvferry.sdk.failures import destination_settled
from tests.process.cluster import pulling_engine
from tests.process.cluster.pair import eventually
from tests.process.cluster.stuck_source import LAYOUT, READ, Trio, running_trio

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trio() -> AsyncIterator[Trio]:
    """Two sources and a destination."""
    async with running_trio() as trio:
        yield trio


def pulling(trio: Trio, tasks: asyncio.TaskGroup) -> "asyncio.Task[object]":
    """A task that pulls from the source which is to be stuck; control names no transfer to it."""
    trio.pool[READ] = 0
    return tasks.create_task(trio.engine.pull(trio.handles["stuck-0"], READ, timeout_s=60))


async def test_a_pull_goes_on_that_its_dead_control_had_half_read(trio: Trio) -> None:
    """The next control has the read ended that it does not know, and sends the one of the pull that came again only
    after that: its blocks are the same."""
    worker = trio.workers[trio.destination]
    async with RouterClient([worker.endpoint]) as router, asyncio.TaskGroup() as tasks:
        pull = pulling(trio, tasks)
        await trio.stop_midway(pull)
        await worker.control.kill()
        await worker.start_control()

        async def asked_again() -> bool:
            return pull.done() or bool(await router.of_worker(worker.name).transfers())

        await eventually(asked_again, "the pull comes again")
        trio.workers["stuck-0"].data_planes[0].resume()
        await pull
    assert len(READ) == trio.arrived()


@pytest.mark.long
async def test_blocks_that_a_dead_control_reads_into_are_not_handed_back(trio: Trio) -> None:
    """A task is cancelled whose control is gone: what the next one answers tells also of the read of the one before."""
    control = trio.workers[trio.destination].control
    async with asyncio.TaskGroup() as tasks:
        pull = pulling(trio, tasks)
        await trio.stop_midway(pull)
        await control.kill()
        pull.cancel()
        await trio.workers[trio.destination].start_control()
        with pytest.raises(asyncio.CancelledError) as caught:
            await pull
    if not destination_settled(caught.value):
        await trio.engine.wait_settled(caught.value, timeout_s=10)
    assert 0 == await trio.late_bytes(expected=False)


@dataclass
class Process:
    """An engine's."""

    process: asyncio.subprocess.Process

    def done(self) -> bool:
        """Whether it has ended."""
        return self.process.returncode is not None


async def test_blocks_are_free_when_the_next_process_of_an_engine_begins(trio: Trio) -> None:
    """What the process that was killed was pulling has ended by then, and the same request means a new pull."""
    worker, handle = trio.workers[trio.destination], trio.handles["stuck-0"]
    trio.pool[READ] = 0
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", pulling_engine.__name__, str(worker.engine_socket), handle.hex())
    )
    await trio.stop_midway(Process(killed))
    killed.kill()
    await killed.wait()
    async with EngineClient.connect(worker.engine_socket, pulling_engine.ENGINE_ID, LAYOUT) as engine:
        assert 0 == await trio.late_bytes(expected=False)
        await engine.pull(handle, READ, timeout_s=30, request_id=pulling_engine.REQUEST_ID)
    assert len(READ) == trio.arrived()
