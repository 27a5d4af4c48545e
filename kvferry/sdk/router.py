"""The router's client: workers, pairs, and the way to each worker's own publications and transfers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from grpc import aio

from kvferry.core.errors import InvalidArgument, NotReady
from kvferry.rpc.options import channel_options
from kvferry.sdk.arguments import checked_name, checked_seconds
from kvferry.sdk.cluster import PAUSE_MAX_S, PAUSE_MIN_S, Endpoints, all_pages
from kvferry.sdk.convert import pair_of, worker_of
from kvferry.sdk.log import sdk_log
from kvferry.sdk.results import ClusterView, Pair, Worker
from kvferry.sdk.worker_client import WorkerClient
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry.worker.v1.worker_pb2_grpc import WorkerServiceStub

ENDPOINTS_MAX = 64
TIMEOUT_S = 10.0


class RouterClient:
    """The cluster, as any of its controls sees it. Use it as ``async with RouterClient(...) as router``.

    Any control answers for the whole cluster: a call that one cannot take goes to the next. Names of workers are taken
    with or without ``workers/``.
    """

    def __init__(self, endpoints: str | Sequence[str], *, timeout_s: float = TIMEOUT_S) -> None:
        """``endpoints`` are host:port of controls (``unix:path`` for one on this host).

        ``timeout_s`` bounds every call, all endpoints together.

        Raises:
            InvalidArgument: an argument is wrong; names it and its value.
        """
        listed = (endpoints,) if isinstance(endpoints, str) else tuple(endpoints)
        if not 1 <= len(listed) <= ENDPOINTS_MAX or not all(listed):
            raise InvalidArgument.of_field("endpoints", listed, f"must be 1 to {ENDPOINTS_MAX} addresses")
        self._listed = listed
        self._timeout_s = checked_seconds("timeout_s", timeout_s)
        self._endpoints: Endpoints | None = None
        self._workers: dict[str, WorkerClient] = {}
        self._log = sdk_log()

    async def __aenter__(self) -> Self:
        self._endpoints = Endpoints([(e, aio.insecure_channel(e, options=channel_options())) for e in self._listed])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        endpoints, self._endpoints = self._open(), None
        for client in self._workers.values():
            await client.close()
        self._workers.clear()
        await endpoints.close()

    async def workers(self) -> list[Worker]:
        """All live workers, in order of their names.

        Raises:
            NotReady: no control could be reached.
        """

        async def page(token: str) -> tuple[list[Worker], str]:
            request = pb.ListWorkersRequest(page_size=1_000, page_token=token)
            response = await self._open().call(
                lambda channel: WorkerServiceStub(channel).ListWorkers, request, self._timeout_s
            )
            return [worker_of(worker) for worker in response.workers], response.next_page_token

        return await all_pages(page)

    async def worker(self, name: str) -> Worker:
        """One live worker.

        Raises:
            NotFound: there is none of that name.
        """
        request = pb.GetWorkerRequest(name=checked_name("workers", name))
        response = await self._open().call(
            lambda channel: WorkerServiceStub(channel).GetWorker, request, self._timeout_s
        )
        return worker_of(response.worker)

    async def watch_workers(self) -> AsyncIterator[ClusterView]:
        """The whole cluster at once, and again after every change; goes on by itself when a control is lost.

        Raises:
            KvferryError: a control refuses to be watched.
        """
        pause = PAUSE_MIN_S
        while True:
            endpoint, channel = self._open().current
            stream = WorkerServiceStub(channel).WatchWorkers(pb.WatchWorkersRequest())
            try:
                async for view in stream:
                    pause = PAUSE_MIN_S
                    yield ClusterView(
                        workers=tuple(worker_of(worker) for worker in view.workers),
                        revision=view.revision,
                        etcd_connected=view.etcd_connected,
                        endpoint=endpoint,
                    )
            except aio.AioRpcError as error:
                self._log.warning("watch of workers broke", error=str(self._open().fail_over(endpoint, error)))
            finally:
                stream.cancel()
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)

    async def check_pair(self, source: str, destination: str) -> Pair:
        """Whether KV can move from a prefill worker to a decode worker, and every reason why not (``mismatches``).

        Raises:
            NotFound: one of the two does not live.
        """
        request = pb.CheckPairRequest(
            source=checked_name("workers", source), destination=checked_name("workers", destination)
        )
        response = await self._open().call(
            lambda channel: WorkerServiceStub(channel).CheckPair, request, self._timeout_s
        )
        return pair_of(response.pair)

    async def pairs(self, compatible_only: bool = True) -> list[Pair]:
        """Pairs of a prefill and a decode worker, in order of source, then destination.

        ``compatible_only``: those that can be used for new work, that is, that match and of which none drains.
        """

        async def page(token: str) -> tuple[list[Pair], str]:
            request = pb.ListPairsRequest(compatible_only=compatible_only, page_size=1_000, page_token=token)
            response = await self._open().call(
                lambda channel: WorkerServiceStub(channel).ListPairs, request, self._timeout_s
            )
            return [pair_of(pair) for pair in response.pairs], response.next_page_token

        return await all_pages(page)

    def of_worker(self, name: str) -> WorkerClient:
        """The publications of, and the transfers into, one worker: its own control answers for them.

        Nothing is sent before the first call. The same name gives the same client; it closes with this one.
        """
        self._open()
        name = checked_name("workers", name)
        client = self._workers.get(name)
        if client is None:
            client = self._workers[name] = WorkerClient(name, self._endpoint_of, self._timeout_s)
        return client

    async def _endpoint_of(self, name: str) -> str:
        return (await self.worker(name)).endpoint

    def _open(self) -> Endpoints:
        if self._endpoints is None:
            raise NotReady("the client is not open: use it as an asynchronous context manager")
        return self._endpoints
