"""ProbeService: which ways there are into this worker, found out on request."""

from grpc import aio

from kvferry.core.transport_pairing import share_host
from kvferry.rpc.errors import unary_method
from kvferry.worker.v1 import probe_pb2 as pb
from kvferry.worker.v1.probe_pb2_grpc import ProbeServiceServicer
from kvferry_control.cluster import Cluster
from kvferry_control.peers.survey import SURVEY_S_MAX, Surveyor
from kvferry_control.requests import id_of
from kvferry_control.worker import LocalWorker


class ProbeService(ProbeServiceServicer):
    """Serves one worker."""

    def __init__(self, worker: LocalWorker, cluster: Cluster, surveyor: Surveyor) -> None:
        self._worker = worker
        self._cluster = cluster
        self._surveyor = surveyor

    @unary_method
    async def ProbePair(
        self, request: pb.ProbePairRequest, context: aio.ServicerContext[pb.ProbePairRequest, pb.ProbePairResponse]
    ) -> pb.ProbePairResponse:
        source = self._cluster.get(id_of("workers", request.source))
        time_s = min(context.time_remaining() or SURVEY_S_MAX, SURVEY_S_MAX)
        probes, settings = await self._surveyor.survey(source, time_s)
        return pb.ProbePairResponse(
            probes=probes,
            source_settings=settings,
            destination_settings=self._worker.settings(),
            same_host=share_host(source.transports, self._worker.record().transports),
        )
