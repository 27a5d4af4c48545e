"""Pulls that end before their data planes have confirmed that no byte can still arrive."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from kvferry.core.errors import Cancelled, DeadlineExceeded, InvalidArgument, NotReady, PeerError
from kvferry.core.layouts import WorkerLayout
from kvferry.core.reasons import Reason
from kvferry.error.v1 import error_pb2
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.failures import PullFailed, destination_settled
from kvferry.transfer.v1 import transfer_pb2 as pb
from tests.contract.sdk.fake_control import FakeControl
from tests.contract.sdk.waiting import until

NAME = "transfers/of-s"
LOST = pb.Failure(reason=error_pb2.REASON_DATA_PLANE_LOST, message="rank 0 is gone")


async def unsettled(control: FakeControl, engine: EngineClient, handle: bytes) -> PullFailed:
    """What a pull raises that ends unsettled."""

    async def end() -> None:
        await until(lambda: NAME in control.transfers, "the transfer made")
        control.end(NAME, pb.TRANSFER_STATE_FAILED, failure=LOST, destination_settled=False)

    error, _ = await asyncio.gather(engine.pull(handle, [1], request_id="s"), end(), return_exceptions=True)
    assert isinstance(error, PullFailed)
    return error


async def test_who_has_only_the_error_can_wait(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """After a pull that raised, its error is enough to wait until the destination is settled, or for the bound."""
    error = await unsettled(control, engine, handle)
    assert destination_settled(error) is False
    with pytest.raises(DeadlineExceeded, match=NAME):
        await engine.wait_settled(error, timeout_s=0.3)
    control.transfers[NAME].destination_settled = True
    settled = await engine.wait_settled(error, timeout_s=5)
    assert settled is not None
    assert settled.destination_settled


async def test_what_is_settled_is_not_waited_for(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """Where nothing can still arrive, because control refused or the end was confirmed, control is not asked."""
    control.refusals["CreateTransfer"] = [PeerError("no such worker", reason=Reason.WORKER_UNKNOWN)]
    with pytest.raises(PeerError) as refused:
        await engine.pull(handle, [1])
    control.calls.clear()
    assert await engine.wait_settled(refused.value, timeout_s=5) is None
    assert [] == control.calls
    with pytest.raises(InvalidArgument, match="timeout_s"):
        await engine.wait_settled(refused.value, timeout_s=0)


async def test_a_cancelled_task_learns_that_the_end_is_unsettled(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A cancellation that control acknowledges without its data planes' confirmation leaves the destination unsettled,
    and the CancelledError tells so and can be waited with."""
    control.after_cancel = lambda transfer: control.end(
        transfer.name, pb.TRANSFER_STATE_CANCELLED, destination_settled=False
    )
    task = tasks.create_task(engine.pull(handle, [1], request_id="s"))
    await until(lambda: NAME in control.transfers, "the transfer made")
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, Cancelled)
    assert destination_settled(caught.value) is False
    control.transfers[NAME].destination_settled = True
    settled = await engine.wait_settled(caught.value, timeout_s=5)
    assert settled is not None
    assert NAME == settled.name


async def test_what_control_does_not_know_is_settled_once_nothing_is_left(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """A transfer that only an earlier life of control knew, named or not, is settled when no read of such a life is
    left at the data planes, and not before."""
    named = await unsettled(control, engine, handle)
    never = asyncio.Event()
    control.before["CreateTransfer"] = never.wait  # type: ignore[assignment]
    with pytest.raises(PullFailed) as unnamed:
        await engine.pull(handle, [1], timeout_s=0.2, request_id="unnamed")
    assert destination_settled(unnamed.value) is False
    control.transfers.clear()
    control.nothing_left_behind = False
    for error in (named, unnamed.value):
        with pytest.raises(DeadlineExceeded, match="has not settled"):
            await engine.wait_settled(error, timeout_s=0.3)
    control.nothing_left_behind = True
    for error in (named, unnamed.value):
        settled = await engine.wait_settled(error, timeout_s=5)
        assert settled is not None
        assert settled.destination_settled


async def test_a_request_that_is_under_way_again_is_not_withdrawn(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """Who still waits for the blocks of an earlier attempt must not end the later one."""
    error = await unsettled(control, engine, handle)
    control.transfers.clear()
    again = await engine.start_pull(handle, [1], request_id="s")
    with pytest.raises(DeadlineExceeded):
        await engine.wait_settled(error, timeout_s=0.3)
    assert not again.done()
    assert "WithdrawTransfer" not in control.calls
    control.end(NAME, pb.TRANSFER_STATE_SUCCEEDED)
    await again.wait()


async def test_closing_ends_the_wait(
    control: FakeControl, layout: WorkerLayout, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """Who waits for a destination to settle learns at once that the client was closed."""
    async with EngineClient.connect(control.path, "engine", layout) as engine:
        error = await unsettled(control, engine, handle)
        never = asyncio.Event()
        control.before["WithdrawTransfer"] = never.wait  # type: ignore[assignment]
        waiting = tasks.create_task(_failure_of(engine.wait_settled(error, timeout_s=60)))
        await until(lambda: "WithdrawTransfer" in control.calls, "control asked")
    async with asyncio.timeout(1):
        assert "closed" in (await waiting).message
    never.set()


async def _failure_of(waiting: Coroutine[Any, Any, object]) -> NotReady:
    with pytest.raises(NotReady) as caught:
        await waiting
    return caught.value
