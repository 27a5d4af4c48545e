"""Replays requests: each arrives at its time, is published at the source, and pulled by the destination.

Blocks are free again once a request's pull is over: what a worker would go on to do with them is not modelled.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from kvferry.bench.block_queue import BlockQueue
from kvferry.bench.ferry_pair import PULL_TIMEOUT_S, TTL_S, FerryEngines
from kvferry.bench.paged_bytes import PagedBytes
from kvferry.bench.prefixes import SeenPrefixes
from kvferry.bench.trace_figures import RequestFigures
from kvferry.bench.trace_file import TraceRequest
from kvferry.bench.transfer import require_path
from kvferry.bench.workload import GROUP
from kvferry.core.errors import KvferryError, TransportFailed
from kvferry.core.layouts import WorkerLayout
from kvferry.launch.concurrently import all_of
from kvferry.sdk.failures import destination_settled
from kvferry.sdk.results import TransferResult


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How requests are replayed."""

    path: str
    """Every pull has to take it, unless it is ``auto``."""
    speed: float
    in_flight: int
    verify_every: int
    prefix_present: bool


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that holds its blocks, and how long it took to get there."""

    request: TraceRequest
    first_token: int
    source_blocks: list[int]
    destination_blocks: list[int]
    admission_wait_s: float
    allocation_wait_s: float


class Replay:
    """One run over a trace."""

    def __init__(
        self, engines: FerryEngines, layout: WorkerLayout, options: ReplayOptions, here: PagedBytes, there: PagedBytes
    ) -> None:
        self._engines = engines
        self._options = options
        self._block_tokens = layout.group(GROUP).tokens_per_block
        self._source, self._destination = (BlockQueue(layout.block_count(GROUP)) for _ in range(2))
        self._here = here
        self._there = there
        self._seen = SeenPrefixes()
        self._slots = asyncio.Semaphore(options.in_flight)

    @classmethod
    async def prepare(cls, engines: FerryEngines, layout: WorkerLayout, options: ReplayOptions) -> Self:
        """Attach to both pools. Raises KvferryError where they cannot be mapped."""
        here = await engines.destination.attach(0)
        there = await engines.source.attach(0)
        return cls(engines, layout, options, PagedBytes(here.bytes, layout), PagedBytes(there.bytes, layout))

    async def run(self, requests: Sequence[TraceRequest]) -> list[RequestFigures]:
        """Replay requests, the first at once; what each took, in their order.

        Raises:
            TransportFailed: a byte was wrong, or a pull took another path than the one forced.
        """
        began = time.perf_counter() - requests[0].arrival_s / self._options.speed
        return await all_of(self._arrive(index, request, began) for index, request in enumerate(requests))

    async def _arrive(self, index: int, request: TraceRequest, began: float) -> RequestFigures:
        arrival = began + request.arrival_s / self._options.speed
        await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
        arrived = time.perf_counter()
        async with self._slots:
            admitted_at = time.perf_counter()
            first_token = self._seen.first_token(request, self._block_tokens) if self._options.prefix_present else 0
            count = -(-request.input_tokens // self._block_tokens)
            source_blocks = await self._source.take(count)
            settled = False
            try:
                destination_blocks = await self._destination.take(count - first_token // self._block_tokens)
                waited = time.perf_counter() - admitted_at
                admitted = _Admitted(
                    request, first_token, source_blocks, destination_blocks, admitted_at - arrived, waited
                )
                figures, settled = await self._move(admitted, verify=index % self._options.verify_every == 0)
                # Blocks that late bytes may still reach stay out of use.
                if settled:
                    self._destination.give_back(destination_blocks)
            finally:
                self._source.give_back(source_blocks)
        return figures

    async def _move(self, admitted: _Admitted, *, verify: bool) -> tuple[RequestFigures, bool]:
        """Publish and pull; also whether the destination's blocks may be used again."""
        request = admitted.request
        if verify:
            await asyncio.to_thread(self._here.poison, admitted.destination_blocks)
        started = time.perf_counter()
        published = pulled = started
        try:
            publication = await self._engines.source.publish(
                admitted.source_blocks, request.input_tokens, TTL_S, expected_readers=0
            )
            published = time.perf_counter()
            try:
                result = await self._engines.destination.pull(
                    publication.handle,
                    admitted.destination_blocks,
                    PULL_TIMEOUT_S,
                    first_token=admitted.first_token,
                )
                pulled = time.perf_counter()
            finally:
                await self._engines.source.release(publication)
        except KvferryError as error:
            failed = _figures(admitted, None, published - started, 0.0, failure=error.reason.value)
            return failed, destination_settled(error)
        require_path(result, self._options.path)
        if verify:
            await self._verify(admitted)
        self._seen.learn(request.hash_ids)
        return _figures(admitted, result, published - started, pulled - published, verified=verify), True

    async def _verify(self, admitted: _Admitted) -> None:
        skipped = admitted.first_token // self._block_tokens
        last_tokens = (admitted.request.input_tokens - 1) % self._block_tokens + 1
        same = await asyncio.to_thread(
            self._here.equals,
            admitted.destination_blocks,
            self._there,
            admitted.source_blocks[skipped:],
            last_tokens,
        )
        if not same:
            raise TransportFailed(f"line {admitted.request.line}: the bytes that arrived are wrong")


def _figures(
    admitted: _Admitted,
    result: TransferResult | None,
    publish_s: float,
    pull_s: float,
    *,
    verified: bool = False,
    failure: str = "",
) -> RequestFigures:
    return RequestFigures(
        token_count=admitted.request.input_tokens,
        present_tokens=admitted.first_token,
        admission_wait_s=admitted.admission_wait_s,
        allocation_wait_s=admitted.allocation_wait_s,
        publish_s=publish_s,
        pull_s=pull_s,
        queue_s=result.queue_s if result else 0.0,
        read_s=result.read_s if result else 0.0,
        received_bytes=result.received_bytes if result else 0,
        path=result.path if result else "",
        verified=verified,
        failure=failure,
    )
