"""A cluster in which something has run out: descriptors of a control, room in etcd."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvferry import RouterClient
from kvferry.core.errors import RetryableError
from kvferry.dev.etcd_server import EtcdServer
from kvferry.launch.worker import WorkerSpec
from tests.process.cluster.pair import BLOCK_BYTES, Pair, eventually
from tests.process.descriptors import no_descriptors

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE_TTL_S = 2
_CALL_S = 10.0


async def moves(pair: Pair, block: int) -> None:
    """Publish a block, pull it, and compare."""
    await pair.fill([block], block)
    publication = await pair.publish([block])
    await pair.destination.pull(publication.handle, [block], timeout_s=_CALL_S)
    assert 0 == await pair.differing([block], [block])


def alarm(etcd: EtcdServer, action: str) -> None:
    """Raise or take back the alarm that etcd raises itself when its database has reached its quota."""
    body = json.dumps({"action": action, "alarm": "NOSPACE"}).encode()
    request = urllib.request.Request(f"{etcd.endpoint}/v3/maintenance/alarm", data=body)  # noqa: S310 - http
    with urllib.request.urlopen(request, timeout=_CALL_S) as answer:  # noqa: S310 - http
        answer.read()


@asynccontextmanager
async def full(etcd: EtcdServer) -> AsyncIterator[None]:
    """Inside, etcd has no space left: it takes no writes and no new leases."""
    await asyncio.to_thread(alarm, etcd, "ACTIVATE")
    try:
        yield
    finally:
        await asyncio.to_thread(alarm, etcd, "DEACTIVATE")


@pytest.mark.long
async def test_a_control_without_descriptors_serves_whom_it_knows(pair: Pair) -> None:
    """Out of descriptors a control goes on with all that is connected; a new router gets a typed error and is served
    once there are descriptors again."""
    await moves(pair, 1)
    with no_descriptors(pair.decode.control.pid):
        async with RouterClient([pair.decode.endpoint], timeout_s=1.0) as router:
            with pytest.raises(RetryableError):
                await router.workers()
        await moves(pair, 2)

    async def serves_a_new_router() -> bool:
        async with RouterClient([pair.decode.endpoint]) as router:
            try:
                return await has_joined(router, "decode-0")
            except RetryableError:
                return False

    await eventually(serves_a_new_router, "control accepts again")
    await moves(pair, 3)


@pytest.mark.long
async def test_an_etcd_without_space_keeps_whom_it_knows(pair: Pair) -> None:
    """With etcd out of space registered workers stay and pulls go on; a new worker says that it is not registered, its
    control says why, and it joins once there is space."""
    spec = WorkerSpec(name="late-0", role="both", pool_bytes=BLOCK_BYTES, lease_ttl_s=LEASE_TTL_S)
    late = pair.cluster.add_worker(spec)
    try:
        async with full(pair.cluster.etcd):
            await late.start()
            await eventually(lambda: "database space exceeded" in late.control.log_tail(50), "control says why")
            async with RouterClient([late.endpoint]) as router:
                known = {worker.name for worker in await router.workers()}
            assert {"workers/prefill-0", "workers/decode-0"} == known
            await moves(pair, 4)
        joined = "late-0 joins once there is space"
        await eventually(lambda: has_joined(pair.router, "late-0"), joined)
    finally:
        await late.stop()


async def has_joined(router: RouterClient, name: str) -> bool:
    """Whether a worker is in the cluster's view."""
    return f"workers/{name}" in {worker.name for worker in await router.workers()}
