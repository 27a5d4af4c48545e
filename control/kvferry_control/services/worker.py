"""WorkerService: the cluster, as any control sees it."""

from collections.abc import AsyncIterator

from grpc import aio

from kvferry.core.errors import ResourceExhausted
from kvferry.rpc.errors import stream_method, unary_method
from kvferry.rpc.times import duration
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry.worker.v1.worker_pb2_grpc import WorkerServiceServicer
from kvferry_control.cluster import Cluster
from kvferry_control.config import LimitsSection
from kvferry_control.requests import id_of, page


class WorkerService(WorkerServiceServicer):
    """Serves routers and operators."""

    def __init__(self, cluster: Cluster, limits: LimitsSection) -> None:
        self._cluster = cluster
        self._limits = limits
        self._watchers = 0

    @unary_method
    async def ListWorkers(
        self,
        request: pb.ListWorkersRequest,
        context: aio.ServicerContext[pb.ListWorkersRequest, pb.ListWorkersResponse],
    ) -> pb.ListWorkersResponse:
        workers = self._cluster.workers
        ordered = [workers[name] for name in sorted(workers)]
        chosen, token = page(ordered, request.page_size, request.page_token, lambda record: record.name)
        return pb.ListWorkersResponse(
            workers=[record.to_wire() for record in chosen],
            next_page_token=token,
            etcd_connected=self._cluster.connected,
            snapshot_age=duration(self._cluster.age_s),
        )

    @unary_method
    async def GetWorker(
        self, request: pb.GetWorkerRequest, context: aio.ServicerContext[pb.GetWorkerRequest, pb.GetWorkerResponse]
    ) -> pb.GetWorkerResponse:
        return pb.GetWorkerResponse(worker=self._cluster.get(id_of("workers", request.name)).to_wire())

    @stream_method
    async def WatchWorkers(
        self,
        request: pb.WatchWorkersRequest,
        context: aio.ServicerContext[pb.WatchWorkersRequest, pb.WatchWorkersResponse],
    ) -> AsyncIterator[pb.WatchWorkersResponse]:
        if self._watchers >= self._limits.watchers:
            raise ResourceExhausted.of_bound("limits.watchers", self._limits.watchers, "so many watch workers")
        self._watchers += 1
        try:
            async for _ in self._cluster.changes():
                workers = self._cluster.workers
                yield pb.WatchWorkersResponse(
                    workers=[workers[name].to_wire() for name in sorted(workers)],
                    revision=self._cluster.revision,
                    etcd_connected=self._cluster.connected,
                )
        finally:
            self._watchers -= 1

    @unary_method
    async def CheckPair(
        self, request: pb.CheckPairRequest, context: aio.ServicerContext[pb.CheckPairRequest, pb.CheckPairResponse]
    ) -> pb.CheckPairResponse:
        source = self._cluster.get(id_of("workers", request.source))
        destination = self._cluster.get(id_of("workers", request.destination))
        return pb.CheckPairResponse(pair=self._cluster.pair(source, destination))

    @unary_method
    async def ListPairs(
        self, request: pb.ListPairsRequest, context: aio.ServicerContext[pb.ListPairsRequest, pb.ListPairsResponse]
    ) -> pb.ListPairsResponse:
        pairs = self._cluster.pairs(request.compatible_only)
        chosen, token = page(
            pairs, request.page_size, request.page_token, lambda pair: f"{pair.source} {pair.destination}"
        )
        return pb.ListPairsResponse(pairs=chosen, next_page_token=token)
