"""DrainService: takes this worker out of service, for operators."""

from collections.abc import AsyncIterator

from grpc import aio

from kvferry.core.errors import InvalidArgument, PermissionDenied, ResourceExhausted
from kvferry.rpc.errors import stream_method, unary_method
from kvferry.rpc.times import checked_seconds
from kvferry.worker.v1 import drain_pb2 as pb
from kvferry.worker.v1.drain_pb2_grpc import DrainServiceServicer
from kvferry_control.config import DRAIN_S_MAX, ControlConfig
from kvferry_control.drain import Drain


class DrainService(DrainServiceServicer):
    """Serves one worker. ``allowed``: whether who reaches this server may begin and undo a drain, or only watch."""

    def __init__(self, config: ControlConfig, drain: Drain, allowed: bool) -> None:
        self._name = f"workers/{config.worker.name}"
        self._timeout_s = config.drain.timeout_s
        self._watchers_max = config.limits.watchers
        self._drain = drain
        self._allowed = allowed
        self._watchers = 0

    @unary_method
    async def DrainWorker(
        self,
        request: pb.DrainWorkerRequest,
        context: aio.ServicerContext[pb.DrainWorkerRequest, pb.DrainWorkerResponse],
    ) -> pb.DrainWorkerResponse:
        self._check(request.name, to_watch=False)
        timeout_s = self._timeout_s
        if request.HasField("timeout"):
            timeout_s = checked_seconds("timeout", request.timeout, DRAIN_S_MAX)
        self._drain.begin(timeout_s, exits=not request.stay)
        return pb.DrainWorkerResponse(drain=self._drain.status())

    @unary_method
    async def UndrainWorker(
        self,
        request: pb.UndrainWorkerRequest,
        context: aio.ServicerContext[pb.UndrainWorkerRequest, pb.UndrainWorkerResponse],
    ) -> pb.UndrainWorkerResponse:
        self._check(request.name, to_watch=False)
        self._drain.undo()
        return pb.UndrainWorkerResponse(drain=self._drain.status())

    @stream_method
    async def WatchDrain(
        self, request: pb.WatchDrainRequest, context: aio.ServicerContext[pb.WatchDrainRequest, pb.WatchDrainResponse]
    ) -> AsyncIterator[pb.WatchDrainResponse]:
        self._check(request.name, to_watch=True)
        if self._watchers >= self._watchers_max:
            raise ResourceExhausted(f"{self._watchers} streams watch the drain, the bound (limits.watchers)")
        self._watchers += 1
        try:
            async for drain in self._drain.changes():
                yield pb.WatchDrainResponse(drain=drain)
        finally:
            self._watchers -= 1

    def _check(self, name: str, *, to_watch: bool) -> None:
        if name != self._name:
            raise InvalidArgument.of_field("name", name, f"this is the control of {self._name}")
        if not (self._allowed or to_watch):
            raise PermissionDenied("drain.remote is off: drain through the engine's socket, or send SIGTERM")
