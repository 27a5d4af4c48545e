"""The demo's router: a plain gRPC client of the two engines. It carries handles and never touches KV."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from grpc import aio

from kvferry.demo.prompts import Request
from kvferry.demo.settings import MAX_NEW_TOKENS, PULL_TIMEOUT_S, TTL_S
from kvferry.refengine.v1 import refengine_pb2 as pb
from kvferry.refengine.v1.refengine_pb2_grpc import ReferenceEngineServiceStub
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.options import channel_options
from kvferry.rpc.times import duration
from kvferry.sdk.convert import transfer_of
from kvferry.sdk.results import TransferResult

if TYPE_CHECKING:
    from kvferry.refengine.v1.refengine_pb2_grpc import ReferenceEngineServiceAsyncStub

CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """A request that was prefilled in one place and decoded in another."""

    request: Request
    tokens: tuple[int, ...]
    transfer: TransferResult


@dataclass(frozen=True, slots=True)
class Usage:
    """What an engine holds."""

    used_blocks: int
    live_publications: int


class Router:
    """Sends requests to a prefill engine and its handles to a decode engine. An asynchronous context manager."""

    def __init__(self, prefill_address: str, decode_address: str) -> None:
        self._channels = [
            aio.insecure_channel(address, options=channel_options()) for address in (prefill_address, decode_address)
        ]
        prefill, decode = map(ReferenceEngineServiceStub, self._channels)
        self._prefill: ReferenceEngineServiceAsyncStub = prefill
        self._decode: ReferenceEngineServiceAsyncStub = decode

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def serve(self, request: Request) -> Served:
        """Prefill there, decode here.

        Raises:
            KvferryError: what an engine answered.
        """
        try:
            return await self._serve(request)
        except aio.AioRpcError as error:
            raise from_rpc(error) from error

    async def usage(self) -> tuple[Usage, Usage]:
        """What the prefill and the decode engine hold now."""
        try:
            answers = [
                await engine.GetUsage(pb.GetUsageRequest(), timeout=CALL_TIMEOUT_S)
                for engine in (self._prefill, self._decode)
            ]
        except aio.AioRpcError as error:
            raise from_rpc(error) from error
        prefill, decode = (Usage(a.used_block_count, a.live_publication_count) for a in answers)
        return prefill, decode

    async def _serve(self, request: Request) -> Served:
        prefilled = await self._prefill.Prefill(
            pb.PrefillRequest(request_id=request.request_id, prompt_tokens=request.prompt_tokens, ttl=duration(TTL_S)),
            timeout=CALL_TIMEOUT_S,
        )
        decoded = await self._decode.Decode(
            pb.DecodeRequest(
                request_id=request.request_id,
                handle=prefilled.handle,
                prompt_token_count=len(request.prompt_tokens),
                first_token=prefilled.first_token,
                max_new_tokens=MAX_NEW_TOKENS,
                pull_timeout=duration(PULL_TIMEOUT_S),
            ),
            timeout=CALL_TIMEOUT_S,
        )
        return Served(
            request=request,
            tokens=tuple(decoded.tokens),
            transfer=transfer_of(decoded.transfer),
        )
