"""A scripted control's router side, over TCP."""

import asyncio
from collections.abc import AsyncIterator

from grpc import aio

from kvferry.core.errors import KvferryError, NotFound
from kvferry.error.v1 import error_pb2
from kvferry.rpc.errors import stream_method, unary_method
from kvferry.rpc.options import server_options
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry.worker.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

Context = aio.ServicerContext[object, object]


class FakeCluster(WorkerServiceServicer):
    """One control's view of ``workers``; ``refusal`` is raised by every call while it is set."""

    def __init__(self, *workers: pb.Worker) -> None:
        self.workers = list(workers)
        self.refusal: KvferryError | None = None
        self.calls: list[str] = []
        self.page_size = 2
        self._views: list[asyncio.Queue[pb.WatchWorkersResponse]] = []
        self._server = aio.server(options=server_options())
        add_WorkerServiceServicer_to_server(self, self._server)
        self.endpoint = ""

    @property
    def server(self) -> aio.Server:
        """To add services before it starts."""
        return self._server

    async def start(self) -> "FakeCluster":
        """Listen on a free port."""
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def kill(self) -> None:
        """End every call and stop listening."""
        await self._server.stop(0)

    def _step(self, method: str) -> None:
        self.calls.append(method)
        if self.refusal is not None:
            raise self.refusal

    @unary_method
    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        self._step("ListWorkers")
        start = int(request.page_token or 0)
        end = start + self.page_size
        token = str(end) if end < len(self.workers) else ""
        return pb.ListWorkersResponse(workers=self.workers[start:end], next_page_token=token)

    @unary_method
    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.GetWorkerResponse:
        self._step(f"GetWorker {request.name}")
        for worker in self.workers:
            if worker.name == request.name:
                return pb.GetWorkerResponse(worker=worker)
        raise NotFound.of_field("name", request.name, "no such worker")

    @stream_method
    async def WatchWorkers(
        self, request: pb.WatchWorkersRequest, context: Context
    ) -> AsyncIterator[pb.WatchWorkersResponse]:
        self._step("WatchWorkers")
        yield pb.WatchWorkersResponse(workers=self.workers, revision=1, etcd_connected=True)
        await asyncio.Event().wait()

    @unary_method
    async def CheckPair(self, request: pb.CheckPairRequest, context: Context) -> pb.CheckPairResponse:
        self._step("CheckPair")
        mismatch = pb.Mismatch(reason=error_pb2.REASON_LAYOUT_MISMATCH, field="model", source="a", destination="b")
        return pb.CheckPairResponse(
            pair=pb.Pair(source=request.source, destination=request.destination, mismatches=[mismatch])
        )

    @unary_method
    async def ListPairs(self, request: pb.ListPairsRequest, context: Context) -> pb.ListPairsResponse:
        self._step(f"ListPairs {request.compatible_only}")
        return pb.ListPairsResponse(pairs=[pb.Pair(source="workers/p", destination="workers/d", compatible=True)])
