"""The engine's standing with its control, and its pools."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvferry.core.errors import (
    DataPlaneLost,
    InvalidArgument,
    LayoutInvalid,
    MessageTooLarge,
    NotReady,
    TransportFailed,
)
from kvferry.core.layouts import WorkerLayout
from kvferry.dataplane.v1 import dataplane_pb2
from kvferry.device.descriptors import send_offer
from kvferry.device.memfd import SharedMemory, create_shared_memory
from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.events import EngineEvent, PoolLost, PoolRestored
from tests.contract.sdk.fake_control import FakeControl
from tests.contract.sdk.waiting import until

POOL_BYTES = 1 << 20


class PoolOwner:
    """Hands out real shared memory, as a data plane does."""

    def __init__(self, path: Path, boot_id: bytes) -> None:
        self.memory: SharedMemory = create_shared_memory("test-pool", POOL_BYTES)
        self.offered = self.pool = pb.RankPool(
            rank=0, device="cpu", pool_bytes=POOL_BYTES, pool_socket=str(path), boot_id=boot_id
        )
        self._offer = dataplane_pb2.PoolOffer(device="cpu", pool_bytes=POOL_BYTES, boot_id=boot_id)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            send_offer(connection, self._offer.SerializeToString(), [self.memory.descriptor])

    def close(self) -> None:
        """Stop listening and let go of every connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for sock in (self._listener, *self._connections):
            sock.close()


@pytest.fixture
def owner(folder: Path) -> Iterator[PoolOwner]:
    """A data plane's pool."""
    owner = PoolOwner(folder / "pool.sock", b"first-life")
    yield owner
    owner.close()


async def test_pool_is_the_owners_memory(control: FakeControl, layout: WorkerLayout, owner: PoolOwner) -> None:
    """What is written through an attached tensor is in the owner's memory, and the other way round."""
    control.pools = [owner.pool]
    async with EngineClient.connect(control.path, "engine", layout) as engine:
        pool = await engine.attach(0)
        assert await engine.attach(0) is pool
        pool.bytes[5] = 77
        assert owner.memory.mapping[5] == 77
        view = pool.kv("full")
        assert (tuple(view.shape), view.dtype) == ((2, 64, 2, 16, 2, 8), torch.bfloat16)
        view[1, 63, 1, 15, 1, 7] = 1.0
        written = owner.memory.mapping[2 * 64 * 2 * 16 * 2 * 8 * 2 - 2 : 2 * 64 * 2 * 16 * 2 * 8 * 2]
        assert written == b"\x80\x3f"
        pool.numpy()[6] = 78
        assert owner.memory.mapping[6] == 78
    with pytest.raises(NotReady):
        _ = pool.bytes
    # A view outlives the client: the memory stays mapped as long as somebody can look at it.
    assert view[1, 63, 1, 15, 1, 7] == 1.0


async def test_lost_pool_is_refused_until_restored(
    control: FakeControl, layout: WorkerLayout, owner: PoolOwner, folder: Path
) -> None:
    """After PoolLost the attached pool raises DataPlaneLost; after PoolRestored attaching gives the new one."""
    control.pools = [owner.pool]
    told: list[EngineEvent] = []
    async with EngineClient.connect(control.path, "engine", layout, on_event=told.append) as engine:
        pool = await engine.attach(0)
        control.tell(pb.WatchEngineResponse(pool_lost=pb.PoolLost(rank=0)))
        await until(lambda: not pool.valid, "the loss told")
        with pytest.raises(DataPlaneLost):
            pool.kv("full")
        with pytest.raises(DataPlaneLost):
            await engine.attach(0)
        second = PoolOwner(folder / "second.sock", b"second-life")
        try:
            control.tell(pb.WatchEngineResponse(pool_restored=second.pool))
            await until(lambda: PoolRestored(0) in told, "the return told")
            again = await engine.attach(0)
            again.bytes[0] = 9
            assert second.memory.mapping[0] == 9
        finally:
            second.close()
    assert told == [PoolLost(0), PoolRestored(0)]


async def test_pool_of_another_life_is_refused(control: FakeControl, layout: WorkerLayout, owner: PoolOwner) -> None:
    """A data plane that restarted since control spoke of it is not attached."""
    stale = pb.RankPool()
    stale.CopyFrom(owner.pool)
    stale.boot_id = b"earlier-life"
    control.pools = [stale]
    async with EngineClient.connect(control.path, "engine", layout) as engine:
        with pytest.raises(DataPlaneLost, match="restarted"):
            await engine.attach(0)


async def test_pool_that_offers_nothing_is_refused(control: FakeControl, layout: WorkerLayout, folder: Path) -> None:
    """A pool socket that hangs up raises TransportFailed, one that is not there DataPlaneLost."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "mute.sock"))
    listener.listen()

    def accept_and_close() -> None:
        listener.accept()[0].close()

    hang_up = threading.Thread(target=accept_and_close)
    hang_up.start()
    control.pools = [
        pb.RankPool(rank=0, device="cpu", pool_bytes=1, pool_socket=str(folder / "mute.sock")),
        pb.RankPool(rank=1, device="cpu", pool_bytes=1, pool_socket=str(folder / "nowhere.sock")),
    ]
    async with EngineClient.connect(control.path, "engine", layout) as engine:
        with pytest.raises(TransportFailed):
            await engine.attach(0)
        with pytest.raises(DataPlaneLost):
            await engine.attach(1)
        with pytest.raises(InvalidArgument, match="rank=2"):
            await engine.attach(2)
    hang_up.join()
    listener.close()


async def test_heartbeat_at_the_interval_of_control(folder: Path, layout: WorkerLayout) -> None:
    """A declared engine sends heartbeats by itself; a client that only looks sends none."""
    fake = await FakeControl(folder / "control.sock", heartbeat_s=0.05).start()
    try:
        async with EngineClient.connect(fake.path, "engine", layout):
            await until(lambda: fake.calls.count("Heartbeat") >= 3, "three heartbeats")
        fake.calls.clear()
        async with EngineClient.connect(fake.path, "looker") as looker:
            # As many round trips as would take several heartbeat intervals' worth of events.
            for number in range(20):
                await looker.publish({"full": [number]}, 1, 5.0)
                await until(lambda: "WatchEngine" in fake.calls, "the session")
            assert "Heartbeat" not in fake.calls
    finally:
        await fake.kill()


async def test_refused_layout_fails_the_connection(control: FakeControl, layout: WorkerLayout) -> None:
    """A layout that control refuses is raised by entering the client."""
    control.refusals["OpenEngine"] = [LayoutInvalid.of_field("layout", "model", "another layout is in use")]
    with pytest.raises(LayoutInvalid, match="in use"):
        async with EngineClient.connect(control.path, "engine", layout):
            pytest.fail("entered")


async def test_missing_control_is_waited_for(folder: Path, layout: WorkerLayout) -> None:
    """Entering waits for a control that is not there yet, at most as long as said."""
    path = folder / "control.sock"
    with pytest.raises(NotReady, match="within"):
        async with EngineClient.connect(path, "engine", layout, connect_timeout_s=0.2):
            pytest.fail("entered")
    control = FakeControl(path)
    control.refusals["OpenEngine"] = [NotReady("a data plane is missing")]
    await control.start()
    try:
        async with EngineClient.connect(path, "engine", layout, connect_timeout_s=10) as engine:
            assert (engine.worker, engine.incarnation) == ("workers/fake", 7)
    finally:
        await control.kill()


async def test_oversized_message_is_not_sent(control: FakeControl, handle: bytes) -> None:
    """A block list larger than a message may be raises MessageTooLarge and reaches no control."""
    async with EngineClient.connect(control.path, "engine") as engine:
        control.calls.clear()
        with pytest.raises(MessageTooLarge, match="bytes"):
            await engine.pull(handle, {"full": range(40_000_000, 45_000_000)})
        assert control.calls == []


async def test_error_of_the_body_is_not_wrapped(control: FakeControl, layout: WorkerLayout) -> None:
    """What the body of `async with` raises comes out as it is."""
    with pytest.raises(ZeroDivisionError):
        async with EngineClient.connect(control.path, "engine", layout):
            _ = 1 / 0
