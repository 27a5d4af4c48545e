"""Sources that leave the cluster while they are asked."""

import asyncio
import socket
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from kvferry.core.errors import PeerError
from kvferry.core.reasons import Reason
from kvferry.worker.v1 import worker_pb2
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
    record = WorkerRecord(
        name="gone-0",
        role=worker_pb2.ROLE_PREFILL,
        state=worker_pb2.WORKER_STATE_READY,
        endpoint=f"{host}:{port}",
        incarnation=7,
        instance_id=b"i" * 16,
        protocol_version=PROTOCOL_VERSION,
        layout=None,
        ranks=(),
    )
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


async def caught(asking: Coroutine[Any, Any, object]) -> PeerError:
    """The refusal that ``asking`` ends with."""
    with pytest.raises(PeerError) as refused:
        await asking
    return refused.value
