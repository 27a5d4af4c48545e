"""Cancellations that control does not answer."""

import asyncio
import time

import pytest

from kvferry.sdk.engine import EngineClient
from kvferry.sdk.failures import destination_settled
from kvferry.sdk.pulls import CANCEL_S
from kvferry.transfer.v1 import transfer_pb2 as pb
from tests.contract.sdk.fake_control import FakeControl
from tests.contract.sdk.waiting import until


async def test_a_cancellation_is_not_awaited_past_the_deadline(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A cancelled pull whose control says nothing more ends by its own deadline and grace, however long that takes."""
    never = asyncio.Event()
    control.before["WithdrawTransfer"] = never.wait  # type: ignore[assignment]
    task = tasks.create_task(engine.pull(handle, [1], timeout_s=0.2, request_id="c"))
    await until(lambda: "CreateTransfer" in control.calls, "the transfer is made")
    await until(lambda: "transfers/of-c" in control.transfers, "it is known")
    since = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert time.monotonic() - since < CANCEL_S
    assert destination_settled(caught.value) is False
    never.set()
    control.end("transfers/of-c", pb.TRANSFER_STATE_CANCELLED)
