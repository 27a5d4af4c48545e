"""Pulls that a control refuses which is not ready: it is opened again, and the command given once more."""

import asyncio

import pytest

from kvferry.core.errors import NotReady
from kvferry.core.layouts import WorkerLayout
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.failures import destination_settled
from kvferry.transfer.v1 import transfer_pb2 as pb
from tests.contract.sdk.fake_control import FakeControl
from tests.contract.sdk.waiting import until

NAME = "transfers/of-n"


async def test_a_pull_goes_through_at_the_second_time(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A pull whose one command is refused because control is not ready ends with the answer to the second."""
    control.calls.clear()
    control.refusals["CreateTransfer"] = [NotReady("no engine has declared a layout yet")]
    task = tasks.create_task(engine.pull(handle, [1], request_id="n"))
    await until(lambda: NAME in control.transfers, "the transfer made")
    assert ["CreateTransfer", "OpenEngine", "CreateTransfer"] == control.calls
    control.end(NAME, pb.TRANSFER_STATE_SUCCEEDED)
    assert (await task).succeeded


async def test_a_second_refusal_is_the_end(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """A pull that is refused once more raises that refusal, and no byte can arrive."""
    control.refusals["CreateTransfer"] = [NotReady("draining"), NotReady("still draining")]
    with pytest.raises(NotReady, match="still draining") as caught:
        await engine.pull(handle, [1])
    assert destination_settled(caught.value) is True


async def test_a_control_that_does_not_get_ready(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """A pull raises why control cannot be opened, by its own bound."""
    control.refusals["CreateTransfer"] = [NotReady("draining")]
    control.refusals["OpenEngine"] = [NotReady("a data plane is missing")] * 1_000
    async with asyncio.timeout(5):
        with pytest.raises(NotReady, match="a data plane is missing"):
            await engine.pull(handle, [1], timeout_s=0.2)


async def test_a_cancelled_pull_is_not_given_again(
    control: FakeControl, layout: WorkerLayout, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A task that is cancelled while control is opened again withdraws the pull; nothing of it keeps the client."""
    async with EngineClient.connect(control.path, "engine", layout) as engine:
        never = asyncio.Event()
        control.refusals["CreateTransfer"] = [NotReady("no engine has declared a layout yet")]
        control.before["OpenEngine"] = never.wait  # type: ignore[assignment]
        control.calls.clear()
        task = tasks.create_task(engine.pull(handle, [1], request_id="n"))
        await until(lambda: "OpenEngine" in control.calls, "control asked to open")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert {} == control.transfers
        since = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - since < 1.0
    assert ["CreateTransfer", "OpenEngine", "WithdrawTransfer"] == control.calls
    never.set()
