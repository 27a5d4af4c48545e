"""Runs the demo: starts everything, serves the requests, compares, and sees that all was given back."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from kvferry.core.errors import LayoutMismatch, NotReady
from kvferry.demo.alone import AloneJob, AloneRun
from kvferry.demo.arithmetic import expected_bytes
from kvferry.demo.prompts import Request, make_requests
from kvferry.demo.report import DemoReport, wrong_tokens
from kvferry.demo.router import Router, Served
from kvferry.demo.settings import MAX_NEW_TOKENS, SETTLE_TIMEOUT_S, DemoSettings, WorkerShape
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.concurrently import all_of
from kvferry.launch.worker import LocalWorker, WorkerSpec
from kvferry.reference_engine.generate import DEFAULT_BLOCK_TOKENS
from kvferry.reference_engine.variants import engine_arguments
from kvferry.sdk.router import RouterClient

PREFILL = "prefill-0"
DECODE = "decode-0"
PAIR_TIMEOUT_S = 30.0
POLL_S = 0.05


class Observer(Protocol):
    """Who watches the demo run."""

    def stage(self, text: str) -> None:
        """Something new begins."""

    def served(self, one: Served) -> None:
        """A request is done."""


async def run_demo(settings: DemoSettings, observer: Observer) -> DemoReport:
    """Run the whole demo; everything it started has ended when it returns.

    Raises:
        KvferryError: a process failed (with its last log lines), or a request did.
    """
    started = time.monotonic()
    requests = make_requests(settings.request_count)
    async with AsyncExitStack() as stack:
        shapes = {PREFILL: settings.prefill, DECODE: settings.decode}
        ranks = sum(shape.parallelism.rank_count for shape in shapes.values())
        observer.stage(f"starting etcd, 2 controls, {ranks} data planes, 2 engines")
        cluster = await stack.enter_async_context(LocalCluster(directory=settings.directory))
        alone = AloneRun(_alone_job(settings, requests), cluster.directory)
        stack.push_async_callback(alone.stop)
        workers = [
            _start_worker(cluster, name, role, shapes[name], settings)
            for name, role in ((PREFILL, "prefill"), (DECODE, "decode"))
        ]
        await all_of([*workers, alone.start()])
        prefill, decode = (cluster.workers[name] for name in shapes)
        client = await stack.enter_async_context(RouterClient(decode.endpoint))
        observer.stage("waiting for the pair")
        await _wait_for_pair(client)
        router = await stack.enter_async_context(Router(prefill.engine_address, decode.engine_address))
        observer.stage(f"serving {len(requests)} requests, {settings.concurrency} at a time")
        serving = time.monotonic()
        served = await _serve_all(router, requests, settings.concurrency, observer)
        serving_s = time.monotonic() - serving
        observer.stage("waiting for leases and blocks to come back")
        leases, blocks = await _wait_returned(router, client, (prefill, decode))
        observer.stage("comparing with the single-process run")
        wrong = wrong_tokens(served, await alone.tokens())
    return DemoReport(
        served=tuple(served),
        wrong_tokens=wrong,
        bytes_expected=_bytes_expected(settings, requests),
        leaked_leases=leases,
        leaked_blocks=blocks,
        serving_s=serving_s,
        total_s=time.monotonic() - started,
    )


def _alone_job(settings: DemoSettings, requests: Sequence[Request]) -> AloneJob:
    return AloneJob(settings.model, requests, MAX_NEW_TOKENS, DEFAULT_BLOCK_TOKENS, settings.device_kind)


def _bytes_expected(settings: DemoSettings, requests: Sequence[Request]) -> int:
    lengths = [len(request.prompt_tokens) for request in requests]
    return expected_bytes(settings.model, settings.decode.tensor_parallel, lengths)


async def _start_worker(
    cluster: LocalCluster, name: str, role: str, shape: WorkerShape, settings: DemoSettings
) -> None:
    spec = WorkerSpec(
        name=name,
        role=role,
        ranks=shape.parallelism.rank_count,
        pipeline_parallel=shape.pipeline_parallel,
        device=settings.pool_devices(0 if name == PREFILL else settings.prefill.parallelism.rank_count),
        pool_bytes=settings.pool_bytes(shape),
        data_plane_flags=settings.data_plane_flags,
        control_flags=settings.control_flags,
    )
    worker = await cluster.start_worker(spec)
    arguments = ["--device", settings.device_kind, "--block-count", str(settings.block_count(shape))]
    await worker.start_engine([*arguments, *shape.engine_arguments(), *engine_arguments(settings.model)])


async def _wait_for_pair(client: RouterClient) -> None:
    """Wait until both workers are ready and compatible.

    Raises:
        LayoutMismatch: they are there and do not match.
        NotReady: they are not there in time.
    """
    try:
        async with asyncio.timeout(PAIR_TIMEOUT_S):
            async for view in client.watch_workers():
                ready = {worker.name for worker in view.workers if worker.state == "ready"}
                if {f"workers/{PREFILL}", f"workers/{DECODE}"} <= ready:
                    break
    except TimeoutError:
        raise NotReady(f"{PREFILL} and {DECODE} were not ready in {PAIR_TIMEOUT_S:g} s") from None
    pair = await client.check_pair(PREFILL, DECODE)
    if not pair.compatible:
        raise LayoutMismatch("; ".join(f"{m.field}: {m.source} and {m.destination}" for m in pair.mismatches))


async def _serve_all(router: Router, requests: Sequence[Request], concurrency: int, observer: Observer) -> list[Served]:
    turns = asyncio.Semaphore(concurrency)

    async def serve(request: Request) -> Served:
        async with turns:
            one = await router.serve(request)
        observer.served(one)
        return one

    return await all_of(serve(request) for request in requests)


async def _wait_returned(router: Router, client: RouterClient, workers: Sequence[LocalWorker]) -> tuple[int, int]:
    """Leases and blocks still held once none are, or when time is up."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_TIMEOUT_S
    while True:
        usages = await router.usage()
        publications = await client.of_worker(PREFILL).publications()
        live = sum(not publication.state.is_ended for publication in publications)
        on_data_planes = sum([await worker.live_leases() for worker in workers])
        leases = max(live, on_data_planes, sum(usage.live_publications for usage in usages))
        blocks = sum(usage.used_blocks for usage in usages)
        if not (leases or blocks) or loop.time() >= deadline:
            return leases, blocks
        await asyncio.sleep(POLL_S)
