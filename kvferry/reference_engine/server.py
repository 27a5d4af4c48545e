"""The reference engine as a process: attaches every rank's pool, declares its layout, serves routers."""

import asyncio
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import structlog
import torch
from grpc import aio

from kvferry.core.errors import AddressInUse, ConfigInvalid, DataPlaneLost
from kvferry.core.layouts import WorkerLayout, block_bytes
from kvferry.refengine.v1.refengine_pb2_grpc import add_ReferenceEngineServiceServicer_to_server
from kvferry.reference_engine.generate import ReferenceEngine
from kvferry.reference_engine.group_blocks import GroupBlocks
from kvferry.reference_engine.layout import engine_layout
from kvferry.reference_engine.paged_kv import PagedKV
from kvferry.reference_engine.service import EngineService
from kvferry.reference_engine.settings import MEMORY_ORDERS, EngineSettings
from kvferry.rpc.addresses import with_port
from kvferry.rpc.options import channel_options, server_options
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.events import PoolLost
from kvferry.transfer.v1.transfer_pb2_grpc import TransferServiceStub

STOP_GRACE_S = 1.0
_MODEL_THREADS = 1
"""So that engines, data planes and controls share a small machine; results do not depend on it."""


async def serve(settings: EngineSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        KvferryError: control is not there in time, refuses the layout, or its pools lie on another device;
            DataPlaneLost later on, when a pool is gone: the KV in it is gone too, so the engine starts anew.
    """
    torch.set_num_threads(_MODEL_THREADS)
    layout = engine_layout(
        settings.model,
        settings.parallelism,
        settings.block_count,
        settings.block_tokens,
        MEMORY_ORDERS[settings.memory_order],
    )
    where = f"unix:{quote(str(settings.control_socket))}"
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="model") as executor:
        async with (
            EngineClient.connect(settings.control_socket, settings.engine_id, layout) as client,
            aio.insecure_channel(where, options=channel_options()) as channel,
            asyncio.TaskGroup() as group,
        ):
            views = await _attach(client, layout, settings.device)
            loop = asyncio.get_running_loop()
            engine = await loop.run_in_executor(executor, ReferenceEngine, settings.model, views, settings.parallelism)
            per_rank = (block_bytes(layout.group(p.group), p) for r in layout.ranks for p in r.placements)
            service = EngineService(
                client,
                engine,
                GroupBlocks(settings.model.layer_groups, settings.block_count, settings.block_tokens),
                TransferServiceStub(channel),
                executor,
                group,
                block_bytes=sum(per_rank),
            )
            watcher = group.create_task(_fail_when_pool_lost(client))
            await _serve_routers(service, settings)
            watcher.cancel()
            service.close()


async def _attach(client: EngineClient, layout: WorkerLayout, device: str) -> list[dict[str, PagedKV]]:
    """Every rank's KV in place, by layer group.

    Raises:
        ConfigInvalid: a pool lies elsewhere than on ``device``.
    """
    views = []
    for rank in layout.ranks:
        pool = await client.attach(rank.rank)
        kind = pool.info.device.partition(":")[0]
        if kind != device:
            raise ConfigInvalid.of_field("device", device, f"rank {rank.rank}'s pool lies on {kind}")
        views.append({placement.group: PagedKV(pool.kv(placement.group)) for placement in rank.placements})
    return views


async def _fail_when_pool_lost(client: EngineClient) -> None:
    async for event in client.events():
        if isinstance(event, PoolLost):
            raise DataPlaneLost(
                f"the pool of rank {event.rank} is gone, and the KV in it", metadata={"rank": str(event.rank)}
            )


async def _serve_routers(service: EngineService, settings: EngineSettings) -> None:
    server = aio.server(options=server_options(), maximum_concurrent_rpcs=settings.max_calls)
    add_ReferenceEngineServiceServicer_to_server(service, server)
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError as error:
        raise AddressInUse.of_field("listen", settings.listen, "cannot be bound") from error
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await server.start()
    address = with_port(settings.listen, port)
    structlog.get_logger("kvferry.reference_engine").info("engine serves", listen=address)
    if settings.ready_fd is not None:
        os.write(settings.ready_fd, json.dumps({"ready": True, "listen": address}).encode() + b"\n")
        os.close(settings.ready_fd)
    try:
        await stopping.wait()
    finally:
        await server.stop(STOP_GRACE_S)
