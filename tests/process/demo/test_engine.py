"""The reference engine between real workers, and a pull by hand into one of them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from kvferry.launch.cluster import LocalCluster
from kvferry.launch.concurrently import all_of
from kvferry.launch.worker import LocalWorker, WorkerSpec
from kvferry.refengine.v1 import refengine_pb2 as pb
from kvferry.refengine.v1.refengine_pb2_grpc import ReferenceEngineServiceStub
from kvferry.rpc.times import duration
from kvferry.sdk.router import RouterClient
from tests.process.demo.commands import finished, kvferry

if TYPE_CHECKING:
    from kvferry.refengine.v1.refengine_pb2_grpc import ReferenceEngineServiceAsyncStub

BLOCKS = 64
PROMPT = list(b"The data plane owns the pool, the engine attaches.")
TOKEN_BYTES = 4 * 2 * 4 * 32 * 2
"""Layers, K and V, KV heads, head dimension, bytes of a number."""
"""50 tokens: 4 blocks."""


@pytest_asyncio.fixture
async def workers() -> AsyncIterator[tuple[LocalWorker, LocalWorker]]:
    """A prefill and a decode worker of one rank each, with their engines."""
    async with LocalCluster() as cluster:

        async def start(name: str, role: str) -> LocalWorker:
            worker = await cluster.start_worker(WorkerSpec(name=name, role=role, pool_bytes=8 << 20))
            await worker.start_engine(["--block-count", str(BLOCKS)])
            return worker

        prefill, decode = await all_of([start("p", "prefill"), start("d", "decode")])
        async with asyncio.timeout(30), RouterClient(decode.endpoint) as router:
            async for view in router.watch_workers():
                if [worker.state for worker in view.workers] == ["ready", "ready"]:
                    break
        yield prefill, decode


def prefill_request(request_id: str, ttl_s: float) -> pb.PrefillRequest:
    """Prefill the prompt."""
    return pb.PrefillRequest(request_id=request_id, prompt_tokens=PROMPT, ttl=duration(ttl_s))


async def used_blocks(engine: "ReferenceEngineServiceAsyncStub") -> int:
    """Blocks that an engine holds."""
    return (await engine.GetUsage(pb.GetUsageRequest())).used_block_count


async def wait_until_free(engine: "ReferenceEngineServiceAsyncStub") -> None:
    """Wait until an engine holds no blocks."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 15
    while used := await used_blocks(engine):
        assert loop.time() < deadline, f"{used} blocks are still held"
        await asyncio.sleep(0.05)


@pytest.mark.long
async def test_engine_refusals_and_a_pull_by_hand(workers: tuple[LocalWorker, LocalWorker]) -> None:
    """Blocks return when a publication expires or a call fails; ``kvferry pull`` moves the published blocks once."""
    prefill, decode = workers
    async with aio.insecure_channel(prefill.engine_address) as channel:
        engine: ReferenceEngineServiceAsyncStub = ReferenceEngineServiceStub(channel)
        expiring = await engine.Prefill(prefill_request("expiring", ttl_s=0.5))
        await wait_until_free(engine)
        too_long = pb.PrefillRequest(request_id="long", prompt_tokens=PROMPT * 100, ttl=duration(1.0))
        with pytest.raises(aio.AioRpcError) as refused:
            await engine.Prefill(too_long)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        published = await engine.Prefill(prefill_request("by-hand", ttl_s=30.0))
        assert await used_blocks(engine) == 4
        arguments = ("--engine-socket", str(decode.engine_socket), "--blocks", "9,3-5", "--json")
        async with kvferry("pull", base64.b64encode(published.handle).decode(), *arguments) as pull:
            status, out, err = await finished(pull)
        assert status == 0, err
        found = json.loads(out)
        assert ("succeeded", len(PROMPT) * TOKEN_BYTES) == (found["state"], found["received_bytes"])
        await wait_until_free(engine)
        async with kvferry("pull", expiring.handle.hex(), *arguments) as pull:
            status, out, err = await finished(pull)
        assert (1, "", True) == (status, out, err.startswith("error: LEASE_ENDED: ")), err
    await check_lists(decode, found["name"])


async def check_lists(decode: LocalWorker, transfer: str) -> None:
    """``workers``, ``transfers`` and ``transfers NAME`` tell of what happened, one JSON object per line."""
    at = ("--endpoint", decode.endpoint, "--json")
    async with kvferry("workers", *at) as listing:
        _, out, _ = await finished(listing)
    assert ["workers/d", "workers/p"] == [json.loads(line)["name"] for line in out.splitlines()]
    async with kvferry("transfers", *at) as listing:
        _, out, _ = await finished(listing)
    assert transfer in [json.loads(line)["name"] for line in out.splitlines()]
    async with kvferry("transfers", transfer, "--watch", *at) as watching:
        status, out, _ = await finished(watching)
    assert (0, "succeeded") == (status, json.loads(out.splitlines()[-1])["state"])
