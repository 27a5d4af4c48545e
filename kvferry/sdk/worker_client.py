"""One worker's own control: its publications, and the transfers into it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from grpc import aio

from kvferry.core.errors import NotFound, NotReady
from kvferry.publication.v1 import publication_pb2
from kvferry.publication.v1.publication_pb2_grpc import PublicationServiceStub
from kvferry.rpc.options import channel_options
from kvferry.sdk.arguments import TOKENS_MAX, checked_int, checked_name
from kvferry.sdk.calls import Method, control_error, is_transport_failure
from kvferry.sdk.cluster import ITEMS_MAX, PAUSE_MAX_S, PAUSE_MIN_S, all_pages
from kvferry.sdk.convert import publication_of, transfer_of
from kvferry.sdk.drains import drain_of, drain_request
from kvferry.sdk.log import sdk_log
from kvferry.sdk.results import Drain, Publication, TransferResult
from kvferry.transfer.v1 import transfer_pb2
from kvferry.transfer.v1.transfer_pb2_grpc import TransferServiceStub
from kvferry.worker.v1 import drain_pb2
from kvferry.worker.v1.drain_pb2_grpc import DrainServiceStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

LIMIT = 1_000
"""Items of a list unless more are asked for."""


class WorkerClient:
    """Made by ``RouterClient.of_worker``. Finds the worker's control by itself, and again after it has moved."""

    def __init__(self, name: str, endpoint_of: Callable[[str], Awaitable[str]], timeout_s: float) -> None:
        self.name = name
        self._endpoint_of = endpoint_of
        self._timeout_s = timeout_s
        self._finding = asyncio.Lock()
        self._endpoint = ""
        self._channel: aio.Channel | None = None
        self._closed = False
        self._log = sdk_log(worker=name)

    async def publications(self, limit: int = LIMIT) -> list[Publication]:
        """The worker's publications, newest first, at most ``limit``. Their handles stay with the engine.

        Raises:
            NotFound: no such worker lives.
            NotReady: its control cannot be reached.
        """
        checked_int("limit", limit, 1, ITEMS_MAX)

        async def page(token: str) -> tuple[list[Publication], str]:
            request = publication_pb2.ListPublicationsRequest(page_size=min(limit, 1_000), page_token=token)
            response = await self._call(lambda channel: PublicationServiceStub(channel).ListPublications, request)
            return [publication_of(listed) for listed in response.publications], response.next_page_token

        return await all_pages(page, limit)

    async def publication(self, name: str) -> Publication:
        """One publication.

        Raises:
            NotFound: there is none of that name, or it ended long ago.
        """
        request = publication_pb2.GetPublicationRequest(name=checked_name("publications", name))
        response = await self._call(lambda channel: PublicationServiceStub(channel).GetPublication, request)
        return publication_of(response.publication)

    async def transfers(self, limit: int = LIMIT) -> list[TransferResult]:
        """Transfers into the worker, newest first, at most ``limit``.

        Raises:
            NotFound: no such worker lives.
            NotReady: its control cannot be reached.
        """
        checked_int("limit", limit, 1, ITEMS_MAX)

        async def page(token: str) -> tuple[list[TransferResult], str]:
            request = transfer_pb2.ListTransfersRequest(page_size=min(limit, 1_000), page_token=token)
            response = await self._call(lambda channel: TransferServiceStub(channel).ListTransfers, request)
            return [transfer_of(listed) for listed in response.transfers], response.next_page_token

        return await all_pages(page, limit)

    async def transfer(self, name: str) -> TransferResult:
        """One transfer as it stands.

        Raises:
            NotFound: there is none of that name, or it ended long ago.
        """
        request = transfer_pb2.GetTransferRequest(name=checked_name("transfers", name))
        response = await self._call(lambda channel: TransferServiceStub(channel).GetTransfer, request)
        return transfer_of(response.transfer)

    async def watch_transfers(
        self, after_revision: int = 0, terminal_only: bool = False
    ) -> AsyncIterator[TransferResult]:
        """Transfers as they change; states in between may be skipped. Goes on by itself when control is lost.

        ``after_revision`` 0 begins with every transfer that control keeps. Control counts revisions anew when it
        restarts: after a lost connection this stream begins with all that is kept, so that nothing is missed.

        Raises:
            NotFound: no such worker lives when it begins.
            KvferryError: control refuses to be watched.
        """
        checked_int("after_revision", after_revision, 0, TOKENS_MAX)
        pause = PAUSE_MIN_S
        channel = await self._reach()
        while True:
            stream = TransferServiceStub(channel).WatchTransfers(
                transfer_pb2.WatchTransfersRequest(after_revision=after_revision, terminal_only=terminal_only)
            )
            try:
                async for change in stream:
                    pause = PAUSE_MIN_S
                    if change.HasField("transfer"):
                        yield transfer_of(change.transfer)
            except aio.AioRpcError as error:
                failure = control_error(error, self._endpoint)
                if not is_transport_failure(error):
                    raise failure from error
                self._log.warning("watch of transfers broke", error=str(failure))
            finally:
                stream.cancel()
            after_revision = 0
            channel, pause = await self._reach_again(channel, pause)

    async def cancel_transfer(self, name: str) -> TransferResult:
        """Ask for a transfer's end; gives its state, which need not be terminal yet.

        Raises:
            NotFound: there is none of that name, or it ended long ago.
        """
        request = transfer_pb2.CancelTransferRequest(name=checked_name("transfers", name))
        response = await self._call(lambda channel: TransferServiceStub(channel).CancelTransfer, request)
        return transfer_of(response.transfer)

    async def drain(self, timeout_s: float | None = None, *, stay: bool = False) -> Drain:
        """Take the worker out of service: no new work from now on; what is left after ``timeout_s`` is ended.

        Then its control ends, unless it is to ``stay``. None: as long as it is configured.

        Raises:
            NotFound: no such worker lives.
            PermissionDenied: the worker does not take this over the network.
        """
        request = drain_request(self.name, timeout_s, stay)
        response = await self._call(lambda channel: DrainServiceStub(channel).DrainWorker, request)
        return drain_of(response.drain)

    async def undrain(self) -> Drain:
        """Let the worker take work again.

        Raises:
            Draining: it is too late, or the worker was told to end by other means.
        """
        request = drain_pb2.UndrainWorkerRequest(name=self.name)
        response = await self._call(lambda channel: DrainServiceStub(channel).UndrainWorker, request)
        return drain_of(response.drain)

    async def watch_drain(self) -> AsyncGenerator[Drain, None]:
        """The drain at once and after every change; ends after DRAINED if the control ends.

        Raises:
            NotReady: the control cannot be reached, or ended before that.
        """
        channel = await self._reach()
        stream = DrainServiceStub(channel).WatchDrain(drain_pb2.WatchDrainRequest(name=self.name))
        try:
            async for change in stream:
                yield drain_of(change.drain)
        except aio.AioRpcError as error:
            raise control_error(error, self._endpoint) from error
        finally:
            stream.cancel()

    async def close(self) -> None:
        """Close the connection. Called by the RouterClient that made it."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _call(self, method: Callable[[aio.Channel], Method[_Request, _Response]], request: _Request) -> _Response:
        """Call an idempotent method; if the control cannot be reached, once more where the worker is now."""
        channel = await self._reach()
        try:
            return await method(channel)(request, timeout=self._timeout_s)
        except aio.AioRpcError as error:
            if not is_transport_failure(error):
                raise control_error(error, self._endpoint) from error
        channel = await self._reach(instead_of=channel)
        try:
            return await method(channel)(request, timeout=self._timeout_s)
        except aio.AioRpcError as error:
            raise control_error(error, self._endpoint) from error

    async def _reach(self, instead_of: aio.Channel | None = None) -> aio.Channel:
        """A channel to the worker's control; looked up anew if ``instead_of`` is the one that is used now."""
        async with self._finding:
            if self._closed:
                raise NotReady("the client is not open")
            if self._channel is None or self._channel is instead_of:
                endpoint = await self._endpoint_of(self.name)
                if self._channel is None or endpoint != self._endpoint:
                    old, self._endpoint = self._channel, endpoint
                    self._channel = aio.insecure_channel(endpoint, options=channel_options())
                    if old is not None:
                        await old.close()
            return self._channel

    async def _reach_again(self, channel: aio.Channel, pause: float) -> tuple[aio.Channel, float]:
        """As :meth:`_reach`, until the worker is found; with growing pauses."""
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)
            try:
                return await self._reach(instead_of=channel), pause
            except (NotFound, NotReady) as error:
                if self._closed:
                    raise
                self._log.warning("worker not found", error=str(error))
