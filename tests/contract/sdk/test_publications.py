"""Publications: made, renewed and ended, over a control that breaks in between."""

import asyncio

import pytest

from kvferry.core.errors import DeadlineExceeded, LeaseEnded, NotFound
from kvferry.publication.v1 import publication_pb2 as pb
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.events import PublicationEnded
from kvferry.sdk.results import PublicationState
from tests.contract.sdk.fake_control import FakeControl
from tests.contract.sdk.waiting import until

RELEASED = pb.PUBLICATION_STATE_RELEASED


async def test_handle_is_given_and_not_shown(control: FakeControl, engine: EngineClient) -> None:
    """A publication carries its handle, and shows it neither in its repr nor as JSON."""
    publication = await engine.publish([1, 2], 20, 5.0)
    assert publication.handle == b"secret-handle"
    assert "secret" not in repr(publication)
    assert "handle" not in publication.to_dict()
    assert (publication.state, publication.token_count) == (PublicationState.LIVE, 20)
    assert publication.time_left_s == 5.0


async def test_end_is_told_once_each(control: FakeControl, engine: EngineClient) -> None:
    """A released publication is told once, though both the call and the stream say that it ended."""
    ended = engine.publication_ended()
    first = await engine.publish([1], 1, 5.0)
    second = await engine.publish([2], 1, 5.0)
    assert (await engine.release(first)).state is PublicationState.RELEASED
    control.end_publication(second.name, pb.PUBLICATION_STATE_EXPIRED)
    assert [(await anext(ended)).name, (await anext(ended)).name] == [first.name, second.name]


async def test_wait_ended_returns_the_final_state(
    control: FakeControl, engine: EngineClient, tasks: asyncio.TaskGroup
) -> None:
    """wait_ended returns when the stream tells the end, and at once ever after."""
    publication = await engine.publish([1], 1, 5.0)
    waiter = tasks.create_task(engine.wait_ended(publication, timeout_s=10))
    control.end_publication(publication.name, RELEASED)
    assert (await waiter).state is PublicationState.RELEASED
    assert (await engine.wait_ended(publication.name)).state is PublicationState.RELEASED


async def test_wait_ended_is_bounded(control: FakeControl, engine: EngineClient) -> None:
    """wait_ended raises DeadlineExceeded when the publication outlives the timeout."""
    publication = await engine.publish([1], 1, 5.0)
    with pytest.raises(DeadlineExceeded):
        await engine.wait_ended(publication, timeout_s=0.05)


async def test_end_missed_by_a_broken_stream_is_fetched(control: FakeControl, engine: EngineClient) -> None:
    """A publication that ended while no stream was there is asked for and told once the streams are back."""
    publication = await engine.publish([1], 1, 5.0)
    control.break_streams()
    control.publications[publication.name].state = RELEASED
    assert (await engine.wait_ended(publication, timeout_s=10)).state is PublicationState.RELEASED


async def test_publication_forgotten_by_control_ends_with_its_lease(control: FakeControl, engine: EngineClient) -> None:
    """A publication that a restarted control does not know counts as ended only when its lease must be over."""
    publication = await engine.publish([1], 1, 1.0)
    begun = asyncio.get_running_loop().time()
    del control.publications[publication.name]
    control.break_streams()
    await until(lambda: "GetPublication" in control.calls, "the publication asked for")
    assert (await engine.wait_ended(publication, timeout_s=10)).state is PublicationState.EXPIRED
    assert asyncio.get_running_loop().time() - begun >= 0.9


async def test_renew_keeps_the_handle(control: FakeControl, engine: EngineClient) -> None:
    """A renewed publication has its new time and its old handle."""
    publication = await engine.publish([1], 1, 5.0)
    renewed = await engine.renew(publication, 50.0)
    assert (renewed.time_left_s, renewed.handle) == (50.0, publication.handle)
    control.refusals["RenewPublication"] = [LeaseEnded("it has ended")]
    with pytest.raises(LeaseEnded):
        await engine.renew(publication, 50.0)


async def test_unknown_publication_is_not_found(control: FakeControl, engine: EngineClient) -> None:
    """Waiting for a publication that control does not know raises NotFound."""
    with pytest.raises(NotFound):
        await engine.wait_ended("nowhere", timeout_s=5)


async def test_cancelled_publish_is_released(
    control: FakeControl, engine: EngineClient, tasks: asyncio.TaskGroup
) -> None:
    """A task cancelled while it publishes leaves nothing pinned: the publication is found by its id and released."""
    never = asyncio.Event()
    control.before["Publish"] = never.wait  # type: ignore[assignment]
    task = tasks.create_task(engine.publish([1], 1, 5.0, request_id="p"))
    await until(lambda: "Publish" in control.calls, "the call received")
    del control.before["Publish"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert control.publications["publications/of-p"].state == RELEASED


async def test_events_reach_the_callback(control: FakeControl) -> None:
    """on_event is called with what the stream tells."""
    told: list[object] = []
    async with EngineClient.connect(control.path, "engine", on_event=told.append) as engine:
        publication = await engine.publish({"full": [1]}, 1, 5.0)
        control.end_publication(publication.name, RELEASED)
        await until(lambda: bool(told), "the event")
    assert [type(event) for event in told] == [PublicationEnded]
