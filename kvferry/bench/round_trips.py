"""What one gRPC exchange with a control costs: the baselines of ``bench latency`` and ``bench control``."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from kvferry.core.errors import TransportFailed
from kvferry.rpc.options import channel_options
from kvferry.worker.v1 import worker_pb2
from kvferry.worker.v1.worker_pb2_grpc import WorkerServiceStub

HEALTH_CHECK = "health_check"
GET_WORKER = "get_worker"
STREAM = "stream_round_trip"


class RoundTrips:
    """Calls to one control. An asynchronous context manager; ``calls`` by name are there once it is entered."""

    def __init__(self, endpoint: str, worker: str) -> None:
        self._endpoint = endpoint
        self._worker = worker
        self._stack = AsyncExitStack()
        self.calls: dict[str, Callable[[], Awaitable[object]]] = {}

    async def __aenter__(self) -> Self:
        channel = await self._stack.enter_async_context(aio.insecure_channel(self._endpoint, options=channel_options()))
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        # Reflection is the one small exchange that every control serves over a stream in both directions.
        self._stream = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        self._stack.callback(self._stream.cancel)
        self.calls = {
            HEALTH_CHECK: partial(check, health_pb2.HealthCheckRequest()),
            GET_WORKER: partial(
                WorkerServiceStub(channel).GetWorker, worker_pb2.GetWorkerRequest(name=f"workers/{self._worker}")
            ),
            STREAM: self._exchange,
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _exchange(self) -> object:
        await self._stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await self._stream.read()
        if answer is aio.EOF:
            raise TransportFailed(f"control at {self._endpoint} ended the stream")
        return answer
