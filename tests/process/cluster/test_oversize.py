"""Messages and lists over their bounds."""

import grpc
import pytest
from grpc import aio

from kvferry.core.errors import MessageTooLarge
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.options import MESSAGE_BYTES_MAX
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry.transfer.v1.transfer_pb2_grpc import TransferServiceStub
from tests.process.cluster.pair import Pair

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.long
async def test_an_oversize_message_is_refused_and_the_worker_goes_on(pair: Pair) -> None:
    """A message over the bound is MESSAGE_TOO_LARGE, from whatever client, and the next pull works."""
    request = pb.CreateTransferRequest(request_id="large", handle=b"x" * (MESSAGE_BYTES_MAX + 1))
    unbounded = [("grpc.max_send_message_length", -1)]
    async with aio.insecure_channel(f"unix:{pair.decode.engine_socket}", options=unbounded) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await TransferServiceStub(channel).CreateTransfer(request, timeout=10)
    assert isinstance(from_rpc(caught.value), MessageTooLarge)
    publication = await pair.publish([1])
    assert "succeeded" == (await pair.destination.pull(publication.handle, [1], timeout_s=10)).state


async def test_creating_transfers_is_for_the_engine(pair: Pair) -> None:
    """On the address for routers, CreateTransfer is PERMISSION_DENIED: it would name blocks of the engine."""
    async with aio.insecure_channel(pair.decode.endpoint) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await TransferServiceStub(channel).CreateTransfer(pb.CreateTransferRequest(), timeout=5)
    assert "PERMISSION_DENIED" == from_rpc(caught.value).reason
