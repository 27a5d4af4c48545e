"""Pulls against a control that misbehaves on purpose."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from kvferry.core.errors import (
    Cancelled,
    DataPlaneLost,
    DeadlineExceeded,
    Fenced,
    KvferryError,
    KvGoneError,
    NotReady,
    PeerError,
    ResourceExhausted,
)
from kvferry.core.layouts import WorkerLayout
from kvferry.core.reasons import Reason
from kvferry.error.v1 import error_pb2
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.failures import PullFailed, destination_settled
from kvferry.sdk.pulls import GRACE_S
from kvferry.sdk.results import TransferState
from kvferry.transfer.v1 import transfer_pb2 as pb
from tests.contract.sdk.fake_control import FakeControl
from tests.contract.sdk.waiting import until

SUCCEEDED = pb.TRANSFER_STATE_SUCCEEDED
FAILED = pb.TRANSFER_STATE_FAILED


async def started(control: FakeControl, name: str) -> None:
    """Wait until control has made a transfer."""
    await until(lambda: name in control.transfers and "CreateTransfer" in control.calls, f"{name} made")


async def test_pull_returns_the_figures_of_the_terminal_transfer(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """A pull's result holds path and why, bytes, descriptors and times as control told them."""
    pull = await engine.start_pull(handle, [1, 2], request_id="a")
    figures = pb.RankFigures(rank=0, path=pb.PATH_NIXL, backend="UCX", received_bytes=10, descriptor_count=2)
    figures.read_time.FromMilliseconds(1500)
    figures.paths.add(source_rank=1, path=pb.PATH_NIXL, backend="UCX", choice="the source is on another host")
    control.end(pull.name, SUCCEEDED, received_bytes=10, descriptor_count=2, ranks=[figures])
    result = await pull.wait()
    assert result.succeeded
    assert (result.path, result.backend) == ("nixl", "UCX")
    assert (result.received_bytes, result.descriptor_count) == (10, 2)
    assert result.ranks[0].read_s == 1.5
    assert "the source is on another host" == result.choice


async def test_hot_path_is_one_command(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """A pull costs one command on a stream that is open already, and no call."""
    control.calls.clear()
    pull = await engine.start_pull(handle, [1])
    control.end(pull.name, SUCCEEDED)
    await pull.wait()
    assert control.calls == ["CreateTransfer"]


async def test_completion_before_the_answer_is_not_lost(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A terminal state that the stream tells before CreateTransfer answers ends the pull."""
    told = asyncio.Event()

    async def end_first() -> None:
        control.end("transfers/of-early", SUCCEEDED)
        # The answer still shows the transfer as it was.
        control.transfers["transfers/of-early"] = pb.Transfer(
            name="transfers/of-early", request_id="early", state=pb.TRANSFER_STATE_NEGOTIATING
        )
        await told.wait()

    control.before["CreateTransfer"] = end_first
    task = tasks.create_task(engine.pull(handle, [1], timeout_s=60, request_id="early"))
    await started(control, "transfers/of-early")
    told.set()
    async with asyncio.timeout(10):
        assert (await task).state is TransferState.SUCCEEDED


async def test_completion_missed_by_a_broken_stream_is_fetched(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """A pull whose completion was never streamed is fetched once the streams are back."""
    pull = await engine.start_pull(handle, [1])
    control.break_streams()
    control.end(pull.name, SUCCEEDED)
    assert (await pull.wait()).succeeded
    assert "WatchTransfer" in control.calls


async def test_failed_transfer_raises_its_class_with_the_transfer(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """A fenced pull raises Fenced, which is a KvGoneError and a PullFailed, with the transfer attached."""
    pull = await engine.start_pull(handle, [1])
    failure = pb.Failure(reason=error_pb2.REASON_FENCED, message="the lease ended", rank=1)
    control.end(pull.name, FAILED, failure=failure)
    with pytest.raises(Fenced) as caught:
        await pull.wait()
    error = caught.value
    assert isinstance(error, PullFailed)
    assert isinstance(error, KvGoneError)
    assert error.transfer is not None
    assert (error.transfer.reason, error.transfer.failed_rank) == (Reason.FENCED, 1)
    assert destination_settled(error) is True


async def test_unsettled_destination_is_said(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """A transfer that ended without its data plane's confirmation leaves the destination unsettled."""
    pull = await engine.start_pull(handle, [1])
    failure = pb.Failure(reason=error_pb2.REASON_DATA_PLANE_LOST, message="rank 0 is gone")
    control.transfers[pull.name].destination_settled = False
    control.end(pull.name, FAILED, failure=failure, destination_settled=False)
    with pytest.raises(DataPlaneLost) as caught:
        await pull.wait()
    assert destination_settled(caught.value) is False


async def test_refusal_leaves_the_destination_settled(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """A transfer that control refuses to make raises the reason and has touched nothing."""
    control.refusals["CreateTransfer"] = [PeerError("no such worker", reason=Reason.WORKER_UNKNOWN)]
    with pytest.raises(PeerError) as caught:
        await engine.pull(handle, [1])
    assert caught.value.reason is Reason.WORKER_UNKNOWN
    assert isinstance(caught.value, PullFailed)
    assert caught.value.transfer is None
    assert destination_settled(caught.value) is True


async def test_dead_control_ends_the_pull_by_the_bound(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """A pull whose control dies ends with NotReady by its timeout plus the grace, destination unsettled."""
    begun = time.monotonic()
    pull = await engine.start_pull(handle, [1], timeout_s=0.5)
    await control.kill()
    with pytest.raises(NotReady) as caught:
        await pull.wait()
    assert time.monotonic() - begun >= 0.5
    assert destination_settled(caught.value) is False


async def test_pull_without_any_control_ends_by_its_timeout(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """A pull that is begun while control is gone ends with NotReady, and says that it may have been made."""
    await control.kill()
    with pytest.raises(NotReady) as caught:
        await engine.pull(handle, [1], timeout_s=0.5)
    assert caught.value.metadata["outcome"] == "unknown"
    assert destination_settled(caught.value) is False


async def test_silent_control_ends_the_pull_as_deadline(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """A control that lives but never ends the transfer: DeadlineExceeded, destination unsettled."""
    with pytest.raises(DeadlineExceeded) as caught:
        await engine.pull(handle, [1], timeout_s=0.1)
    assert destination_settled(caught.value) is False
    assert GRACE_S < 1.0


async def test_restarted_control_that_forgot_the_transfer(
    control: FakeControl, engine: EngineClient, handle: bytes
) -> None:
    """After a restart that lost the transfer, the pull fails at once and the engine is declared again."""
    pull = await engine.start_pull(handle, [1], timeout_s=60)
    await control.kill()
    again = await FakeControl(control.path).start()
    try:
        with pytest.raises(NotReady, match="no longer knows") as caught:
            await pull.wait()
        assert destination_settled(caught.value) is False
        assert again.calls[0] == "OpenEngine"
    finally:
        await again.kill()


async def test_pull_begun_during_a_restart_goes_through(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A pull that is begun while control is away is made once it is back."""
    await control.kill()
    task = tasks.create_task(engine.pull(handle, [1], request_id="r", timeout_s=30))
    again = await FakeControl(control.path).start()
    try:
        await until(lambda: "transfers/of-r" in again.transfers, "the transfer made")
        await until(lambda: again.calls.count("Pull") == 1, "the stream back")
        again.end("transfers/of-r", SUCCEEDED)
        assert (await task).succeeded
    finally:
        await again.kill()


async def test_restarting_control_is_waited_for(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """A control that restarted and lacks its data planes yet is asked again until it can be opened."""
    control.calls.clear()
    control.refusals["CreateTransfer"] = [NotReady("no engine has declared a layout yet")]
    control.refusals["OpenEngine"] = [NotReady("a data plane is missing"), NotReady("a data plane is missing")]
    pull = await engine.start_pull(handle, [1])
    assert control.calls == ["CreateTransfer", *["OpenEngine"] * 3, "CreateTransfer"]
    control.end(pull.name, SUCCEEDED)
    await pull.wait()


async def test_not_ready_control_is_reopened_once(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """A control that is not ready gets the engine's declaration again, and the call once more."""
    control.calls.clear()
    control.refusals["CreateTransfer"] = [NotReady("no engine has declared a layout yet")]
    pull = await engine.start_pull(handle, [1])
    assert control.calls == ["CreateTransfer", "OpenEngine", "CreateTransfer"]
    control.refusals["CreateTransfer"] = [NotReady("draining"), NotReady("draining")]
    with pytest.raises(NotReady, match="draining"):
        await engine.start_pull(handle, [2])
    control.end(pull.name, SUCCEEDED)
    await pull.wait()


async def test_cancelled_task_cancels_the_transfer_first(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A task that is cancelled in a pull sees CancelledError only after control has ended the transfer."""
    task = tasks.create_task(engine.pull(handle, [1], request_id="c"))
    await started(control, "transfers/of-c")
    acknowledge = asyncio.Event()
    control.after_cancel = lambda _transfer: None
    control.before["WithdrawTransfer"] = acknowledge.wait  # type: ignore[assignment]
    task.cancel()
    await until(lambda: "WithdrawTransfer" in control.calls, "the cancellation sent")
    acknowledge.set()
    assert not task.done()
    control.end("transfers/of-c", pb.TRANSFER_STATE_CANCELLED)
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert destination_settled(caught.value) is True


async def test_task_cancelled_before_the_answer_cancels_the_transfer(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A task cancelled while CreateTransfer runs has the request withdrawn: nobody needs the transfer's name."""
    never = asyncio.Event()
    control.before["CreateTransfer"] = never.wait  # type: ignore[assignment]
    task = tasks.create_task(engine.pull(handle, [1], request_id="c"))
    await started(control, "transfers/of-c")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert control.calls[-2:] == ["CreateTransfer", "WithdrawTransfer"]
    assert control.transfers["transfers/of-c"].state == pb.TRANSFER_STATE_CANCELLED


async def test_unacknowledged_cancellation_is_said(
    control: FakeControl, engine: EngineClient, handle: bytes, monkeypatch: pytest.MonkeyPatch, tasks: asyncio.TaskGroup
) -> None:
    """A cancellation that control never acknowledges is bounded, and leaves the destination unsettled."""
    monkeypatch.setattr("kvferry.sdk.pulls.CANCEL_S", 0.2)
    control.after_cancel = lambda _transfer: None
    task = tasks.create_task(engine.pull(handle, [1], request_id="c"))
    await started(control, "transfers/of-c")
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert destination_settled(caught.value) is False
    control.end("transfers/of-c", pb.TRANSFER_STATE_CANCELLED)


async def test_cancel_returns_the_terminal_transfer(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """Pull.cancel returns the acknowledged end, and wait raises Cancelled from then on."""
    pull = await engine.start_pull(handle, [1])
    assert (await pull.cancel()).state is TransferState.CANCELLED
    with pytest.raises(PullFailed) as caught:
        await pull.wait()
    assert isinstance(caught.value, Cancelled)
    assert caught.value.destination_settled is True


async def test_same_request_id_shares_the_transfer(control: FakeControl, engine: EngineClient, handle: bytes) -> None:
    """Two pulls with one request id get the one transfer's completion."""
    first = await engine.start_pull(handle, [1], request_id="same")
    second = await engine.start_pull(handle, [1], request_id="same")
    assert first.name == second.name
    control.end(first.name, SUCCEEDED)
    assert (await first.wait()) == (await second.wait())


async def test_closing_cancels_what_is_under_way(control: FakeControl, layout: WorkerLayout, handle: bytes) -> None:
    """Leaving the client cancels its pulls on control; who waits for them is told."""
    async with EngineClient.connect(control.path, "engine", layout) as engine:
        pull = await engine.start_pull(handle, [1])
    assert control.transfers[pull.name].state == pb.TRANSFER_STATE_CANCELLED
    with pytest.raises(PullFailed):
        await pull.wait()
    with pytest.raises(NotReady):
        await engine.pull(handle, [1])


async def test_a_pull_is_asked_for_again_after_a_break(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """A pull whose stream breaks before its answer is sent again, the same but for the time that is left of it."""
    task = tasks.create_task(engine.pull(handle, [1], request_id="again", timeout_s=30))
    await started(control, "transfers/of-again")
    control.break_streams()
    await until(lambda: len(control.requests) == 2, "asked again")
    first, second = control.requests
    assert first.timeout.ToNanoseconds() > second.timeout.ToNanoseconds()
    second.timeout.CopyFrom(first.timeout)
    assert first == second
    control.end("transfers/of-again", SUCCEEDED)
    assert (await task).succeeded


async def test_a_refusal_after_a_break_leaves_the_destination_unsettled(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """What is refused when it is asked for again may have been begun before: nobody knows what still arrives."""
    task = tasks.create_task(failed(engine.pull(handle, [1], request_id="again", timeout_s=30)))
    await started(control, "transfers/of-again")
    control.refusals["CreateTransfer"] = [PeerError("no such worker", reason=Reason.WORKER_UNKNOWN)]
    control.break_streams()
    error = await task
    assert Reason.WORKER_UNKNOWN is error.reason
    assert destination_settled(error) is False


async def test_callers_of_one_request_share_its_end(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """One that waits for the whole pull and one that only started it both hear of the end, whichever came first."""
    whole = tasks.create_task(engine.pull(handle, [1], request_id="same"))
    await started(control, "transfers/of-same")
    begun = await engine.start_pull(handle, [1], request_id="same")
    control.end("transfers/of-same", SUCCEEDED)
    assert (await begun.wait()) == (await whole)


async def test_closing_ends_a_pull_without_a_name(
    control: FakeControl, layout: WorkerLayout, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """Leaving the client cancels also those pulls whose first answer would have been their end."""
    async with EngineClient.connect(control.path, "engine", layout) as engine:
        task = tasks.create_task(failed(engine.pull(handle, [1], request_id="open")))
        await started(control, "transfers/of-open")
    assert isinstance(await task, PullFailed)
    assert control.transfers["transfers/of-open"].state == pb.TRANSFER_STATE_CANCELLED


async def test_many_pulls_share_messages(
    control: FakeControl, engine: EngineClient, handle: bytes, tasks: asyncio.TaskGroup
) -> None:
    """Pulls begun together each end with their own transfer."""
    pulls = [tasks.create_task(engine.pull(handle, [1], request_id=f"m{number}")) for number in range(200)]
    await until(lambda: len(control.transfers) == 200, "all made")
    for number in reversed(range(200)):
        control.end(f"transfers/of-m{number}", SUCCEEDED)
    assert [f"transfers/of-m{number}" for number in range(200)] == [(await pull).name for pull in pulls]


async def test_too_many_commands_are_refused_at_once(
    control: FakeControl, engine: EngineClient, handle: bytes, monkeypatch: pytest.MonkeyPatch, tasks: asyncio.TaskGroup
) -> None:
    """Past the bound on commands without an answer a pull is RESOURCE_EXHAUSTED, and nothing of it was sent."""
    monkeypatch.setattr("kvferry.sdk.pull_stream.COMMANDS_MAX", 1)
    first = tasks.create_task(engine.pull(handle, [1], request_id="first"))
    await started(control, "transfers/of-first")
    with pytest.raises(ResourceExhausted) as caught:
        await engine.pull(handle, [2], request_id="second")
    assert destination_settled(caught.value) is True
    control.end("transfers/of-first", SUCCEEDED)
    await first
    assert ["transfers/of-first"] == list(control.transfers)


async def failed(pulling: Coroutine[Any, Any, object]) -> KvferryError:
    """What ``pulling`` raises."""
    with pytest.raises(KvferryError) as caught:
        await pulling
    return caught.value
