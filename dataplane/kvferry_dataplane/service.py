"""DataPlaneService: what control asks, over a Unix socket."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import structlog

from kvferry.core.errors import InternalError, KvferryError
from kvferry.dataplane.v1 import dataplane_pb2 as pb, dataplane_pb2_grpc
from kvferry.rpc.errors import abort, unary_method
from kvferry.rpc.lanes import Lane, LaneServer
from kvferry_dataplane.metrics import Metrics
from kvferry_dataplane.outbox import SessionQueue
from kvferry_dataplane.plane import Plane

# The generated stubs give a context type that exists only for type checkers.
Context = Any
_log = structlog.get_logger("kvferry.dataplane.service")


class DataPlaneServicer(dataplane_pb2_grpc.DataPlaneServiceServicer):
    """Serves one data plane."""

    def __init__(self, plane: Plane, description: pb.DescribeResponse, metrics: Metrics, lanes: LaneServer) -> None:
        """``description`` is what does not change while the process lives."""
        self._plane = plane
        self._description = description
        self._metrics = metrics
        self._lanes = lanes

    @unary_method
    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """Say what this data plane is."""
        response = pb.DescribeResponse()
        response.CopyFrom(self._description)
        response.access.rank = self._plane.rank
        if self._plane.adoption is not None:
            response.adoption.CopyFrom(self._plane.adoption)
        return response

    @unary_method
    async def Adopt(self, request: pb.AdoptRequest, context: Context) -> pb.AdoptResponse:
        """Take the data plane for a worker."""
        await self._plane.adopt(request.adoption)
        return pb.AdoptResponse()

    # The generated base class speaks of the generator style; this method reads and writes through its context.
    async def Session(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> None:
        """Serve commands and send events until control goes or a newer session takes over."""
        session = self._plane.outbox.open(self._plane.opened())
        self._metrics.session_connected.set(1)
        _log.info("session opened")
        offer = self._lanes.offer()
        try:
            await offer.tell(context)
            # What came before the session goes by the stream, and the lane is in place after it.
            for _ in range(len(session)):
                await _write_first(session, context)
            offer.when_taken(partial(self._go_by, session))
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read_commands(request_iterator, session))
                await _write_events(session, context)
                reader.cancel()
        except* KvferryError as errors:
            await abort(context, _first(errors))
        finally:
            offer.withdraw()
            self._plane.outbox.close(session)
            self._plane.session_ended()
            self._metrics.session_connected.set(self._plane.outbox.connected)
            _log.info("session closed")

    def _go_by(self, session: SessionQueue, lane: Lane) -> None:
        session.go_by(lane)
        lane.begin(partial(self._take, session), session.close, session.flush)

    def _take(self, session: SessionQueue, frame: bytes) -> None:
        if not session.closed:
            self._plane.handle(pb.SessionRequest.FromString(frame))

    async def _read_commands(self, requests: AsyncIterator[pb.SessionRequest], session: SessionQueue) -> None:
        try:
            async for request in requests:
                if session.closed:
                    return
                self._plane.handle(request)
        except Exception as error:
            _log.exception("defect in a session")
            raise InternalError(f"{type(error).__name__} in a session") from error
        finally:
            session.close()


async def _write_events(session: SessionQueue, context: Context) -> None:
    while await _write_first(session, context):
        continue


async def _write_first(session: SessionQueue, context: Context) -> bool:
    """Write the oldest event, once there is one; False once the session is closed."""
    event = await session.first()
    if event is None:
        return False
    await context.write(event)
    session.drop_first()
    return True


def _first(errors: ExceptionGroup[KvferryError]) -> KvferryError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
