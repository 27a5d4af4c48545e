"""Who may drain a worker, and which worker."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import grpc
import pytest
from grpc import aio

from kvferry.core.reasons import Reason
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.times import duration
from kvferry.worker.v1 import drain_pb2 as pb
from kvferry.worker.v1.drain_pb2_grpc import DrainServiceStub, add_DrainServiceServicer_to_server
from kvferry_control.config_reading import parse_config
from kvferry_control.drain import Drain
from kvferry_control.services.drain import DrainService

CONFIG = parse_config(
    {
        "worker": {"name": "w", "role": "both", "listen": "127.0.0.1:0", "engine_socket": "/unused"},
        "ranks": [{"socket": "/unused"}],
        "etcd": {"endpoints": ["127.0.0.1:1"]},
        "drain": {"timeout_s": 12.0},
    }
)


class Recorded:
    """Stands for the drain: notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, bool]] = []

    def begin(self, timeout_s: float, *, exits: bool) -> None:
        """Note it."""
        self.asked.append((timeout_s, exits))

    def status(self) -> pb.Drain:
        """As it stands."""
        return pb.Drain(worker="workers/w", state=pb.DRAIN_STATE_DRAINING)

    async def changes(self) -> AsyncIterator[pb.Drain]:
        """One state."""
        yield self.status()


async def served(path: Path, drain: Recorded, allowed: bool) -> aio.Server:
    """The service on a socket."""
    server = aio.server()
    add_DrainServiceServicer_to_server(DrainService(CONFIG, cast("Drain", drain), allowed), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    return server


async def test_drain_service(tmp_path: Path) -> None:
    """Where it is allowed, the worker's own name drains it, for the time given or the configured one; another worker's
    name, and a time out of bounds, are refused and nothing begins."""
    drain = Recorded()
    server = await served(tmp_path / "s", drain, allowed=True)
    async with aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        stub = DrainServiceStub(channel)
        await stub.DrainWorker(pb.DrainWorkerRequest(name="workers/w"))
        await stub.DrainWorker(pb.DrainWorkerRequest(name="workers/w", timeout=duration(3), stay=True))
        for wrong in (
            pb.DrainWorkerRequest(name="workers/other"),
            pb.DrainWorkerRequest(name="workers/w", timeout=duration(-1)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await stub.DrainWorker(wrong)
            assert Reason.INVALID_ARGUMENT is from_rpc(caught.value).reason
    await server.stop(None)
    assert [(12.0, True), (3.0, False)] == drain.asked


async def test_a_server_on_which_draining_is_not_allowed(tmp_path: Path) -> None:
    """Where it is not allowed, a drain can be watched, but neither begun nor undone."""
    drain = Recorded()
    server = await served(tmp_path / "s", drain, allowed=False)
    async with aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        stub = DrainServiceStub(channel)
        for call in (
            stub.DrainWorker(pb.DrainWorkerRequest(name="workers/w")),
            stub.UndrainWorker(pb.UndrainWorkerRequest(name="workers/w")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await call
            assert Reason.PERMISSION_DENIED is from_rpc(caught.value).reason
        seen = [change.drain.state async for change in stub.WatchDrain(pb.WatchDrainRequest(name="workers/w"))]
        assert [pb.DRAIN_STATE_DRAINING] == seen
    await server.stop(None)
    assert [] == drain.asked
