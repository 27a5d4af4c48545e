"""What the CancelledError of a pull says of its destination blocks."""

import asyncio

import pytest

from kvferry.sdk.convert import transfer_of
from kvferry.sdk.failures import destination_settled
from kvferry.sdk.pulls import Outcome, Pull
from kvferry.sdk.results import TransferResult
from kvferry.transfer.v1 import transfer_pb2 as pb


@pytest.mark.parametrize("settled", [True, False])
async def test_a_cancelled_pull_tells_whether_its_blocks_are_settled(settled: bool) -> None:
    """A transfer that was cancelled before its data planes confirmed leaves them unsettled; the error says so."""
    ended = pb.Transfer(name="transfers/t", state=pb.TRANSFER_STATE_CANCELLED, destination_settled=settled)

    async def withdraw(_: Pull) -> Outcome:
        return transfer_of(ended)

    async def look(_: Pull) -> TransferResult:
        return transfer_of(ended)

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(Pull(pb.CreateTransferRequest(), withdraw, look).wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await waiting
    assert settled == destination_settled(caught.value)
