"""When a source is asked, and sources that leave the cluster while they are."""

import asyncio
import socket
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from kvferry.core.errors import PeerError
from kvferry.core.reasons import Reason
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.worker.v1 import worker_pb2
from kvferry_control.peers.source import Source
from kvferry_control.peers.sources import Sources
from kvferry_control.records import PROTOCOL_VERSION, WorkerRecord
from tests.contract.negotiation.asked import negotiated


@pytest.mark.parametrize("instances", [{}, {"gone-0": b"j" * 16}], ids=["gone", "another life"])
async def test_a_negotiation_with_a_source_that_left_is_peer_lost(instances: dict[str, bytes]) -> None:
    """When a source is gone from the snapshot while it is asked, or another life of it has the same incarnation, as
    after a loss of etcd's data, the question ends as PEER_LOST, at once."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    host, port = server.getsockname()
    record = record_of("gone-0", f"{host}:{port}")
    async with asyncio.TaskGroup() as tasks:

        def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            return tasks.create_task(work)

        sources = Sources("decode-0", [], spawn)
        asking = tasks.create_task(caught(negotiated(sources, record, "t", time.monotonic() + 20)))
        # A connection that is taken and never answered.
        silent, _ = await asyncio.get_running_loop().sock_accept(server)
        sources.workers_changed({name: replace(record, instance_id=instance) for name, instance in instances.items()})
        async with asyncio.timeout(10):
            error = await asking
    silent.close()
    server.close()
    assert Reason.PEER_LOST is error.reason
    assert "gone-0" in error.message


def told_sources(handle: bytes) -> tuple[Sources, WorkerRecord, Source]:
    """Sources of which one is known, and has told of ``handle``; no stream to it ever opens."""

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        work.close()
        return Mock()

    sources, record = Sources("decode-0", [], spawn), record_of("prefill-0", "127.0.0.1:1")
    source = sources._source(record)
    source.layout = Mock()
    answer = neg.NegotiateResponse(incarnation=record.incarnation)
    source.session.announced.take(neg.Announcement(handle=handle, answer=answer))
    return sources, record, source


async def test_what_was_told_goes_before_the_question() -> None:
    """Of a publication that the source has told of it is asked in the next turn, so that reads go first; of any other
    at once. What was taken back meanwhile is not asked at all."""
    sources, record, source = told_sources(b"told")
    asked = source.session._waiting
    sources.ask(record, "other", b"other", 1, time.monotonic() + 10, Mock())
    assert ["other"] == [question.request.transfer for question in asked.values()]
    sources.ask(record, "told", b"told", 1, time.monotonic() + 10, Mock())
    sources.ask(record, "taken back", b"told", 1, time.monotonic() + 10, Mock()).cancel()
    assert len(asked) == 1
    await asyncio.sleep(0)
    assert ["other", "told"] == [question.request.transfer for question in asked.values()]


def record_of(name: str, endpoint: str) -> WorkerRecord:
    """A worker that may be asked."""
    return WorkerRecord(
        name=name,
        role=worker_pb2.ROLE_PREFILL,
        state=worker_pb2.WORKER_STATE_READY,
        endpoint=endpoint,
        incarnation=7,
        instance_id=b"i" * 16,
        protocol_version=PROTOCOL_VERSION,
        layout=None,
        ranks=(),
    )


async def caught(asking: Coroutine[Any, Any, object]) -> PeerError:
    """The refusal that ``asking`` ends with."""
    with pytest.raises(PeerError) as refused:
        await asking
    return refused.value
