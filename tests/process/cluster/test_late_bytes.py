"""A source that stops midway through a read: the destination's blocks are handed back, and no byte comes after that.

Over sockets (`UCX_TLS=tcp`), so that a stopped source really stalls a read. Everything is real, from the engine's call
to the data planes' memory. The same with the rollover switched off finds late bytes: the check can fail.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from kvferry import DeadlineExceeded, EngineClient, KvferryError, PullFailed, Reason
from kvferry.core.dense import CROSS_LAYER, DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.worker import LocalWorker, WorkerSpec
from kvferry.sdk.pulls import Pull
from kvferry_dataplane.reads.unsafe import CONFIRMATION, SKIP_ROLLOVER
from tests.process.cluster.pair import eventually, ready

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = DenseModel("large", 1, 8, 128, 256, ElementType.BFLOAT16)
BLOCK_BYTES = 1 << 20
BLOCK_COUNT = 112
LAYOUT = dense_layout(MODEL, BLOCK_COUNT, order=CROSS_LAYER)
READ = list(range(96))
"""Blocks of the read that is stopped, on both sides: more than can be in flight."""
OTHERS = [100, 101]
"""Blocks of the reads from the other source."""
FILLED = 0xA5
LATE_S = 1.0
SOURCES = ("stuck-0", "other-0")
DESTINATIONS = ("decode-0", "unsafe-0")


@dataclass
class Trio:
    """Two sources and a destination. Pools are ``[block, byte]``."""

    workers: dict[str, LocalWorker]
    engines: dict[str, EngineClient]
    destination: str = "decode-0"
    pools: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    handles: dict[str, bytes] = field(default_factory=dict)

    @property
    def engine(self) -> EngineClient:
        """The destination's."""
        return self.engines[self.destination]

    @property
    def pool(self) -> npt.NDArray[np.uint8]:
        """The destination's."""
        return self.pools[self.destination]

    async def prepare(self) -> None:
        """Fill and publish both sources."""
        for name, engine in self.engines.items():
            pool = (await engine.attach(0)).numpy()
            self.pools[name] = pool[: BLOCK_COUNT * BLOCK_BYTES].reshape(BLOCK_COUNT, BLOCK_BYTES)
        for name, blocks in (("stuck-0", READ), ("other-0", OTHERS)):
            self.pools[name][:] = FILLED
            tokens = MODEL.tokens_per_block * len(blocks)
            self.handles[name] = (await self.engines[name].publish(blocks, tokens, 600, 0)).handle

    def arrived(self) -> int:
        """Blocks of the read whose last byte is there."""
        return int(np.count_nonzero(self.pool[READ, -1]))

    async def stopped_midway(self, timeout_s: float) -> Pull:
        """A pull from the source that is to be stuck, some of whose blocks have arrived when its data plane stops."""
        self.pool[READ] = 0
        pull = await self.engine.start_pull(self.handles["stuck-0"], READ, timeout_s=timeout_s)
        source = self.workers["stuck-0"].data_planes[0]
        async with asyncio.timeout(10):
            while self.arrived() < 4:  # noqa: ASYNC110 - what is waited for lies in another process
                await asyncio.sleep(0.001)
        source.pause()
        stat = Path(f"/proc/{source.pid}/stat")
        await eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the source has stopped")
        assert self.arrived() < len(READ), "the read was over before its source stopped"
        assert not pull.done()
        return pull

    async def pull_from_other(self, blocks: list[int]) -> None:
        """A pull that has nothing to do with the source that is stuck."""
        await self.engine.pull(self.handles["other-0"], blocks, timeout_s=10)

    async def late_bytes(self, *, expected: bool) -> int:
        """Write zeroes to the blocks that were handed back, let the source go on, and count what else appears."""
        handed_back = self.pool[: len(READ)]
        handed_back[:] = 0
        self.workers["stuck-0"].data_planes[0].resume()
        if expected:
            await eventually(lambda: bool(np.any(handed_back)), "late bytes")
        else:
            await asyncio.sleep(LATE_S)
        return int(np.count_nonzero(handed_back))


def spec_of(name: str) -> WorkerSpec:
    """One of the workers; ``unsafe-0`` is a destination that gives up no agent."""
    environment = {"UCX_TLS": "tcp"}
    if name == "unsafe-0":
        environment[SKIP_ROLLOVER] = CONFIRMATION
    return WorkerSpec(
        name=name,
        role="decode" if name in DESTINATIONS else "prefill",
        pool_bytes=BLOCK_COUNT * BLOCK_BYTES,
        data_plane_flags=("--path", "nixl"),
        data_plane_environment=environment,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trio() -> AsyncIterator[Trio]:
    """Two sources, and a destination as kvferry is meant to run."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(LocalCluster())
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(cluster.start_worker(spec_of(name))) for name in (*SOURCES, *DESTINATIONS)]
        workers = {worker.name: worker for worker in (task.result() for task in started)}
        engines = {
            name: await stack.enter_async_context(EngineClient.connect(worker.engine_socket, f"engine-{name}", LAYOUT))
            for name, worker in workers.items()
        }
        await ready([workers[name] for name in DESTINATIONS], list(workers))
        trio = Trio(workers, engines)
        await trio.prepare()
        yield trio


@pytest.fixture(scope="module")
def unsafe_trio(trio: Trio) -> Trio:
    """The same with the destination that gives up no agent."""
    return replace(trio, destination="unsafe-0")


async def ended(pull: Pull) -> PullFailed:
    """The failure that a pull ends with."""
    with pytest.raises(PullFailed) as caught:
        await pull.wait()
    return caught.value


async def pulls_meanwhile(trio: Trio, pull: Pull) -> int:
    """Pulls from the other source that succeeded before ``pull`` had ended."""
    count = 0
    while not pull.done():
        await trio.pull_from_other(OTHERS)
        count += 1
    return count


async def busy_blocks(trio: Trio, pull: Pull) -> set[Reason]:
    """Why pulls from the other source into blocks of ``pull`` were refused before it had ended."""
    refused = set()
    while not pull.done():
        try:
            await trio.pull_from_other(READ[:2])
        except KvferryError as error:
            refused.add(error.reason)
        else:
            assert pull.done(), "blocks that bytes could still arrive in were given to another read"
    return refused


async def test_no_byte_comes_after_an_acknowledged_cancel(trio: Trio) -> None:
    """A cancel is acknowledged with settled blocks while the source is stopped; nothing arrives once it goes on, and
    pulls from another source succeed all the while."""
    pull = await trio.stopped_midway(timeout_s=60)
    async with asyncio.TaskGroup() as tasks:
        others = tasks.create_task(pulls_meanwhile(trio, pull))
        result = await pull.cancel()
    assert ("cancelled", True) == (result.state, result.destination_settled)
    assert others.result() > 0
    assert 0 == await trio.late_bytes(expected=False)
    await trio.engine.pull(trio.handles["stuck-0"], READ, timeout_s=20)
    assert len(READ) == trio.arrived()


async def test_no_byte_comes_after_a_deadline(trio: Trio) -> None:
    """At its deadline a pull from a stopped source ends with settled blocks, and nothing arrives once it goes on."""
    pull = await trio.stopped_midway(timeout_s=2.5)
    async with asyncio.TaskGroup() as tasks:
        others = tasks.create_task(pulls_meanwhile(trio, pull))
        failure = await ended(pull)
    assert (Reason.DEADLINE_EXCEEDED, True) == (failure.reason, failure.destination_settled)
    assert others.result() > 0
    assert 0 == await trio.late_bytes(expected=False)


async def test_blocks_of_a_read_that_settles_are_given_to_nobody(trio: Trio) -> None:
    """Until a cancelled read has settled its blocks are refused as BLOCK_BUSY; then they take another read's bytes."""
    pull = await trio.stopped_midway(timeout_s=60)
    async with asyncio.TaskGroup() as tasks:
        refused = tasks.create_task(busy_blocks(trio, pull))
        await pull.cancel()
    assert {Reason.BLOCK_BUSY} == refused.result()
    await trio.pull_from_other(READ[:2])
    assert (trio.pool[:2] == FILLED).all()
    assert 0 == await trio.late_bytes(expected=False)


@pytest.mark.parametrize("by_deadline", [False, True], ids=["cancel", "deadline"])
async def test_without_the_rollover_late_bytes_are_found(unsafe_trio: Trio, *, by_deadline: bool) -> None:
    """With the agents kept, the same steps find bytes in blocks that were handed back: the other tests can fail."""
    pull = await unsafe_trio.stopped_midway(timeout_s=2.5 if by_deadline else 60)
    if by_deadline:
        assert (await ended(pull)).destination_settled
    else:
        assert (await pull.cancel()).destination_settled
    assert await unsafe_trio.late_bytes(expected=True) > 0
    log = "".join(unsafe_trio.workers["unsafe-0"].data_planes[0].log_lines())
    assert SKIP_ROLLOVER in log


async def test_an_end_that_nobody_confirms_is_settled_late(trio: Trio) -> None:
    """A pull whose own data plane does not answer ends unsettled; once that goes on, it confirms, and the blocks may be
    used again."""
    pull = await trio.stopped_midway(timeout_s=60)
    destination = trio.workers[trio.destination].data_planes[0]
    destination.pause()
    result = await pull.cancel()
    assert ("cancelled", False) == (result.state, result.destination_settled)
    destination.resume()
    assert (await pull.wait_settled(timeout_s=5)).destination_settled
    assert 0 == await trio.late_bytes(expected=False)


async def test_a_lost_data_plane_leaves_the_blocks_unsettled_until_it_is_back(trio: Trio) -> None:
    """When its own data plane is killed a pull ends unsettled; the data plane's next life has nothing that writes."""
    pull = await trio.stopped_midway(timeout_s=60)
    worker = trio.workers[trio.destination]
    await worker.data_planes[0].kill()
    failure = await ended(pull)
    assert (Reason.DATA_PLANE_LOST, False) == (failure.reason, failure.destination_settled)
    with pytest.raises(DeadlineExceeded):
        await pull.wait_settled(timeout_s=0.3)
    trio.workers["stuck-0"].data_planes[0].resume()
    await worker.start_data_plane(0)
    assert (await pull.wait_settled(timeout_s=10)).destination_settled
