"""What routers call: prefill and publish, pull and decode. Blocks go back when nobody can touch them any more."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from grpc import aio

from kvferry.core.errors import InternalError, KvferryError
from kvferry.refengine.v1 import refengine_pb2 as pb
from kvferry.refengine.v1.refengine_pb2_grpc import ReferenceEngineServiceServicer
from kvferry.reference_engine.config import require_int
from kvferry.reference_engine.generate import ReferenceEngine, tokens_in_kv
from kvferry.reference_engine.group_blocks import GroupBlocks
from kvferry.rpc.errors import from_rpc, unary_method
from kvferry.rpc.times import checked_seconds, duration
from kvferry.sdk.calls import is_outcome_unknown
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.failures import destination_settled
from kvferry.sdk.results import Publication
from kvferry.transfer.v1 import transfer_pb2

if TYPE_CHECKING:
    from kvferry.transfer.v1.transfer_pb2_grpc import TransferServiceAsyncStub

TTL_S_MAX = 3_600.0
CALL_TIMEOUT_S = 5.0

_Context = Any
_Result = TypeVar("_Result")


class EngineService(ReferenceEngineServiceServicer):
    """Serves one worker's model. It computes on ``executor``, one request at a time; the loop stays free.

    ``group`` runs what outlives a call: waiting for the end of publications.
    """

    def __init__(
        self,
        client: EngineClient,
        engine: ReferenceEngine,
        blocks: GroupBlocks,
        transfers: "TransferServiceAsyncStub",
        executor: Executor,
        group: asyncio.TaskGroup,
        *,
        block_bytes: int,
    ) -> None:
        self._client = client
        self._engine = engine
        self._blocks = blocks
        self._transfers = transfers
        self._executor = executor
        self._group = group
        self._block_bytes = block_bytes
        self._live_publications = 0
        self._watches: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("kvferry.reference_engine")

    @unary_method
    async def Prefill(self, request: pb.PrefillRequest, context: _Context) -> pb.PrefillResponse:
        """Prefill a prompt into fresh blocks and publish them; they are freed when the publication has ended."""
        ttl_s = checked_seconds("ttl", request.ttl, TTL_S_MAX)
        tokens = list(request.prompt_tokens)
        blocks = self._blocks.allocate(len(tokens), request.request_id)
        try:
            first, seconds = await self._compute(self._engine.prefill, tokens, blocks)
            publication = await self._client.publish(
                blocks, len(tokens), ttl_s, request_id=f"prefill-{request.request_id}"
            )
        except BaseException as error:
            self._free_after(blocks, ttl_s if _may_be_published(error) else 0.0)
            raise
        self._live_publications += 1
        watch = self._group.create_task(self._free_when_ended(publication, blocks))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return pb.PrefillResponse(first_token=first, handle=publication.handle, compute_time=duration(seconds))

    @unary_method
    async def Decode(self, request: pb.DecodeRequest, context: _Context) -> pb.DecodeResponse:
        """Pull a prompt's KV into fresh blocks, decode, and free them."""
        timeout_s = checked_seconds("pull_timeout", request.pull_timeout, TTL_S_MAX)
        prompt, wanted = request.prompt_token_count, request.max_new_tokens
        require_int("prompt_token_count", prompt, at_least=1)
        require_int("max_new_tokens", wanted, at_least=1)
        blocks = self._blocks.allocate(tokens_in_kv(prompt, wanted), request.request_id)
        reusable = True
        try:
            transfer = await self._pull(request, self._blocks.first(blocks, prompt), timeout_s)
            rest, seconds = await self._compute(self._engine.decode, request.first_token, prompt, blocks, wanted - 1)
        except BaseException as error:
            reusable = destination_settled(error)
            raise
        finally:
            if reusable:
                self._blocks.free(blocks)
            else:
                self._log.warning("blocks stay out of use: late bytes may arrive", request=request.request_id)
        return pb.DecodeResponse(tokens=[request.first_token, *rest], transfer=transfer, compute_time=duration(seconds))

    @unary_method
    async def GetUsage(self, request: pb.GetUsageRequest, context: _Context) -> pb.GetUsageResponse:
        """What is held now."""
        return pb.GetUsageResponse(
            used_block_count=self._blocks.allocated_count,
            live_publication_count=self._live_publications,
            block_bytes=self._block_bytes,
        )

    def close(self) -> None:
        """Stop waiting for publications, so that the task group can end. What is published stays readable."""
        for watch in self._watches:
            watch.cancel()

    async def _pull(
        self, request: pb.DecodeRequest, destination: Mapping[str, Sequence[int]], timeout_s: float
    ) -> transfer_pb2.Transfer:
        result = await self._client.pull(
            request.handle, destination, timeout_s, request_id=f"decode-{request.request_id}"
        )
        lookup = transfer_pb2.GetTransferRequest(name=result.name)
        try:
            answer = await self._transfers.GetTransfer(lookup, timeout=CALL_TIMEOUT_S)
        except aio.AioRpcError as error:
            raise from_rpc(error) from error
        return answer.transfer

    async def _compute(self, function: Callable[..., _Result], *arguments: object) -> tuple[_Result, float]:
        """Run the model; its result and the seconds it took. A cancelled call waits, since it writes to blocks."""

        def timed() -> tuple[_Result, float]:
            started = time.perf_counter()
            return function(*arguments), time.perf_counter() - started

        future = asyncio.get_running_loop().run_in_executor(self._executor, timed)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def _free_when_ended(self, publication: Publication, blocks: Mapping[str, Sequence[int]]) -> None:
        try:
            await self._client.wait_ended(publication)
        except KvferryError as error:
            # Reachable only when control forgot it: it has ended then, and long ago.
            self._log.warning("lost sight of a publication", publication=publication.name, error=str(error))
        self._live_publications -= 1
        self._blocks.free(blocks)

    def _free_after(self, blocks: Mapping[str, Sequence[int]], seconds: float) -> None:
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._blocks.free, blocks)
        else:
            self._blocks.free(blocks)


def _may_be_published(error: BaseException) -> bool:
    """Whether the blocks may be pinned although publishing failed."""
    return isinstance(error, KvferryError) and not isinstance(error, InternalError) and is_outcome_unknown(error)
