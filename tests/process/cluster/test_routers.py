"""Routers that die, stop or do not read, while others are served."""

import asyncio
import signal
import subprocess
import sys

import pytest
from grpc import aio

from kvferry.rpc.options import channel_options
from kvferry.transfer.v1 import transfer_pb2 as tpb
from kvferry.transfer.v1.transfer_pb2_grpc import TransferServiceStub
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry.worker.v1.worker_pb2_grpc import WorkerServiceStub
from kvferry_control.config import LimitsSection
from tests.process.cluster.pair import Pair, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

WATCHERS_MAX: int = LimitsSection().watchers
SLOW_PULLS = 300
"""Their states fill what gRPC keeps for a reader that does not read."""
_WATCHING = """
import asyncio, sys
from grpc import aio
from kvferry.rpc.options import channel_options
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry.worker.v1.worker_pb2_grpc import WorkerServiceStub

async def watch():
    async with aio.insecure_channel(sys.argv[1], options=channel_options()) as channel:
        calls = [WorkerServiceStub(channel).WatchWorkers(pb.WatchWorkersRequest()) for _ in range(int(sys.argv[2]))]
        for call in calls:
            await call.read()
        print("watching", flush=True)
        await asyncio.Event().wait()

asyncio.run(watch())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.long
async def test_a_router_that_is_gone_leaves_no_watcher(pair: Pair, how: signal.Signals) -> None:
    """As many watchers as may be, of a router that is killed or stopped, make room for others without being told."""
    command = [sys.executable, "-c", _WATCHING, pair.decode.endpoint, str(WATCHERS_MAX)]
    router = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220, S603 - ends with this test
    try:
        assert router.stdout is not None
        assert b"watching\n" == await asyncio.to_thread(router.stdout.readline)
        async with aio.insecure_channel(pair.decode.endpoint, options=channel_options()) as channel:
            stub = WorkerServiceStub(channel)

            refusals: list[str] = []

            async def watches() -> bool:
                try:
                    return isinstance(await stub.WatchWorkers(pb.WatchWorkersRequest()).read(), pb.WatchWorkersResponse)
                except aio.AioRpcError as error:
                    refusals.append(error.details() or "")
                    return False

            assert not await watches()
            assert "limits.watchers" in refusals[0]
            router.send_signal(how)
            await eventually(watches, "the gone router's watchers make room")
            calls = [stub.WatchWorkers(pb.WatchWorkersRequest()) for _ in range(WATCHERS_MAX - 1)]
            for call in calls:
                assert isinstance(await call.read(), pb.WatchWorkersResponse)
    finally:
        router.kill()
        router.wait()
        if router.stdout is not None:
            router.stdout.close()


async def test_a_router_that_does_not_read_misses_no_end(pair: Pair) -> None:
    """A watcher that does not read keeps nobody waiting, and when it reads again it is told of every end."""
    publication = await pair.publish([1], ttl_s=60, readers=0)
    async with aio.insecure_channel(pair.decode.endpoint, options=channel_options()) as channel:
        slow = TransferServiceStub(channel).WatchTransfers(tpb.WatchTransfersRequest())
        assert isinstance(await slow.read(), tpb.WatchTransfersResponse)
        pulls = [pair.destination.pull(publication.handle, [block], timeout_s=30) for block in range(SLOW_PULLS)]
        names = {result.name for result in await asyncio.gather(*pulls)}
        revision = 0
        told: set[str] = set()
        async with asyncio.timeout(30):
            while names - told:
                read = await slow.read()
                assert isinstance(read, tpb.WatchTransfersResponse)
                assert revision < read.revision
                revision = read.revision
                if read.transfer.state == tpb.TRANSFER_STATE_SUCCEEDED:
                    told.add(read.transfer.name)
    await pair.source.release(publication)
