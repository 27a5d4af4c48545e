"""A scripted control: real gRPC over a Unix socket, with answers that a test decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from grpc import aio

from kvferry.core.errors import KvferryError, NotFound
from kvferry.engine.v1 import engine_pb2, engine_pb2_grpc
from kvferry.publication.v1 import publication_pb2, publication_pb2_grpc
from kvferry.rpc.errors import stream_method, unary_method
from kvferry.rpc.options import server_options
from kvferry.rpc.refusals import refusal_to_wire
from kvferry.sdk.convert import TERMINAL_STATES
from kvferry.transfer.v1 import transfer_pb2, transfer_pb2_grpc

Context = aio.ServicerContext[object, object]
Step = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """A step that does nothing."""


class FakeControl(
    engine_pb2_grpc.EngineServiceServicer,
    transfer_pb2_grpc.TransferServiceServicer,
    publication_pb2_grpc.PublicationServiceServicer,
):
    """One life of a control. ``calls`` lists the methods called, in order, streams included.

    Commands on the stream of pulls are listed as the methods ``CreateTransfer``, ``WithdrawTransfer`` and
    ``WatchTransfer``. A test sets ``refusals[method]`` to a list of errors that the next calls get, and
    ``before[method]`` to what happens before an answer goes out.
    """

    def __init__(self, path: Path, heartbeat_s: float = 30.0) -> None:
        self.path = path
        self.calls: list[str] = []
        self.refusals: dict[str, list[KvferryError]] = {}
        self.before: dict[str, Step] = {}
        self.after_cancel: Callable[[transfer_pb2.Transfer], None] = self.end_cancelled
        self.transfers: dict[str, transfer_pb2.Transfer] = {}
        self.nothing_left_behind = True
        """Whether no read of an earlier life is left at the data planes."""
        self.publications: dict[str, publication_pb2.Publication] = {}
        self.requests: list[transfer_pb2.CreateTransferRequest] = []
        self.pools: list[engine_pb2.RankPool] = []
        self._heartbeat_s = heartbeat_s
        self._pull_streams: list[asyncio.Queue[engine_pb2.PullEvent | None]] = []
        self._answers_at_end: dict[str, list[int]] = {}
        self._engine_watchers: list[asyncio.Queue[engine_pb2.WatchEngineResponse | None]] = []
        self._revision = 0
        self._server = aio.server(options=server_options())
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self, self._server)
        transfer_pb2_grpc.add_TransferServiceServicer_to_server(self, self._server)
        publication_pb2_grpc.add_PublicationServiceServicer_to_server(self, self._server)

    async def start(self) -> "FakeControl":
        """Listen."""
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()
        return self

    async def kill(self) -> None:
        """End every call and stop listening at once."""
        await self._server.stop(0)

    def break_streams(self) -> None:
        """End the streams, so that what follows is missed."""
        for pulls in self._pull_streams:
            pulls.put_nowait(None)
        for events in self._engine_watchers:
            events.put_nowait(None)
        self._pull_streams.clear()
        self._engine_watchers.clear()

    def end(self, name: str, state: transfer_pb2.TransferState.ValueType, **values: object) -> None:
        """Make a transfer terminal and tell the engine."""
        self._revision += 1
        values = {"destination_settled": True, **values}
        ended = transfer_pb2.Transfer(state=state, revision=self._revision, **values)  # type: ignore[arg-type]
        self.transfers[name].MergeFrom(ended)
        for command_id in self._answers_at_end.pop(name, [0]):
            told = engine_pb2.PullEvent(command_id=command_id, transfer=self.transfers[name])
            for pulls in self._pull_streams:
                pulls.put_nowait(told)

    def end_cancelled(self, transfer: transfer_pb2.Transfer) -> None:
        """What a healthy control does with a cancellation."""
        self.end(transfer.name, transfer_pb2.TRANSFER_STATE_CANCELLED)

    def tell(self, event: engine_pb2.WatchEngineResponse) -> None:
        """Tell the engine something."""
        for watcher in self._engine_watchers:
            watcher.put_nowait(event)

    def end_publication(self, name: str, state: publication_pb2.PublicationState.ValueType) -> None:
        """End a publication and tell the engine."""
        self.publications[name].state = state
        self.tell(engine_pb2.WatchEngineResponse(publication_ended=self.publications[name]))

    async def _step(self, method: str) -> None:
        self.calls.append(method)
        if self.refusals.get(method):
            raise self.refusals[method].pop(0)
        await self.before.get(method, nothing)()

    @unary_method
    async def OpenEngine(
        self, request: engine_pb2.OpenEngineRequest, context: Context
    ) -> engine_pb2.OpenEngineResponse:
        await self._step("OpenEngine")
        interval = Duration()
        interval.FromMilliseconds(round(self._heartbeat_s * 1000))
        return engine_pb2.OpenEngineResponse(
            worker="fake", incarnation=7, pools=self.pools, heartbeat_interval=interval
        )

    @unary_method
    async def Heartbeat(self, request: engine_pb2.HeartbeatRequest, context: Context) -> engine_pb2.HeartbeatResponse:
        await self._step("Heartbeat")
        return engine_pb2.HeartbeatResponse()

    @stream_method
    async def WatchEngine(
        self, request: engine_pb2.WatchEngineRequest, context: Context
    ) -> AsyncIterator[engine_pb2.WatchEngineResponse]:
        await self._step("WatchEngine")
        events: asyncio.Queue[engine_pb2.WatchEngineResponse | None] = asyncio.Queue()
        self._engine_watchers.append(events)
        yield engine_pb2.WatchEngineResponse()
        while (event := await events.get()) is not None:
            yield event

    @unary_method
    async def Publish(self, request: engine_pb2.PublishRequest, context: Context) -> engine_pb2.PublishResponse:
        known = self.publications.get(f"publications/of-{request.request_id}")
        if known is None:
            known = publication_pb2.Publication(
                name=f"publications/of-{request.request_id}",
                state=publication_pb2.PUBLICATION_STATE_LIVE,
                token_count=request.token_count,
                time_left=request.ttl,
            )
            self.publications[known.name] = known
        await self._step("Publish")
        return engine_pb2.PublishResponse(publication=known, handle=b"secret-handle")

    @unary_method
    async def ReleasePublication(
        self, request: engine_pb2.ReleasePublicationRequest, context: Context
    ) -> engine_pb2.ReleasePublicationResponse:
        await self._step("ReleasePublication")
        self.end_publication(request.name, publication_pb2.PUBLICATION_STATE_RELEASED)
        return engine_pb2.ReleasePublicationResponse(publication=self.publications[request.name])

    @unary_method
    async def ListHeldPublications(
        self, request: engine_pb2.ListHeldPublicationsRequest, context: Context
    ) -> engine_pb2.ListHeldPublicationsResponse:
        return engine_pb2.ListHeldPublicationsResponse()

    @unary_method
    async def RenewPublication(
        self, request: engine_pb2.RenewPublicationRequest, context: Context
    ) -> engine_pb2.RenewPublicationResponse:
        await self._step("RenewPublication")
        self.publications[request.name].time_left.CopyFrom(request.ttl)
        return engine_pb2.RenewPublicationResponse(publication=self.publications[request.name])

    @unary_method
    async def GetPublication(
        self, request: publication_pb2.GetPublicationRequest, context: Context
    ) -> publication_pb2.GetPublicationResponse:
        await self._step("GetPublication")
        if request.name not in self.publications:
            raise NotFound.of_field("name", request.name, "no such publication")
        return publication_pb2.GetPublicationResponse(publication=self.publications[request.name])

    @unary_method
    async def ListPublications(
        self, request: publication_pb2.ListPublicationsRequest, context: Context
    ) -> publication_pb2.ListPublicationsResponse:
        await self._step("ListPublications")
        return publication_pb2.ListPublicationsResponse(publications=self.publications.values())

    @unary_method
    async def ListTransfers(
        self, request: transfer_pb2.ListTransfersRequest, context: Context
    ) -> transfer_pb2.ListTransfersResponse:
        await self._step("ListTransfers")
        names = sorted(self.transfers)
        start = names.index(request.page_token) if request.page_token else 0
        end = start + (request.page_size or 100)
        return transfer_pb2.ListTransfersResponse(
            transfers=[self.transfers[name] for name in names[start:end]], next_page_token="".join(names[end : end + 1])
        )

    async def Pull(  # type: ignore[override]
        self, request_iterator: AsyncIterator[engine_pb2.PullRequest], context: Context
    ) -> None:
        await self._step("Pull")
        events: asyncio.Queue[engine_pb2.PullEvent | None] = asyncio.Queue()
        self._pull_streams.append(events)
        await context.write(engine_pb2.PullResponse())
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read_pulls(request_iterator, events, tasks))
            while (event := await events.get()) is not None:
                await context.write(engine_pb2.PullResponse(events=[event]))
            reader.cancel()

    async def _read_pulls(
        self,
        requests: AsyncIterator[engine_pb2.PullRequest],
        events: "asyncio.Queue[engine_pb2.PullEvent | None]",
        tasks: asyncio.TaskGroup,
    ) -> None:
        async for request in requests:
            for command in request.commands:
                # Each by itself, so that a test can hold one back.
                tasks.create_task(self._do(command, events))

    async def _do(self, command: engine_pb2.PullCommand, events: "asyncio.Queue[engine_pb2.PullEvent | None]") -> None:
        event = engine_pb2.PullEvent(command_id=command.command_id)
        try:
            match command.WhichOneof("command"):
                case "create":
                    event.transfer.CopyFrom(await self._create(command.create))
                    if command.answer_at_end and event.transfer.state not in TERMINAL_STATES:
                        self._answers_at_end.setdefault(event.transfer.name, []).append(command.command_id)
                        return
                case "watch":
                    event.transfer.CopyFrom(await self._watch(command.watch.name))
                case "withdraw":
                    event.transfer.CopyFrom(await self._withdraw(command.withdraw.request_id))
        except KvferryError as error:
            event.refused.CopyFrom(refusal_to_wire(error))
        events.put_nowait(event)

    async def _create(self, request: transfer_pb2.CreateTransferRequest) -> transfer_pb2.Transfer:
        name = f"transfers/of-{request.request_id}"
        if not self.refusals.get("CreateTransfer"):
            self.requests.append(request)
            self.transfers.setdefault(
                name,
                transfer_pb2.Transfer(
                    name=name, request_id=request.request_id, state=transfer_pb2.TRANSFER_STATE_NEGOTIATING
                ),
            )
        await self._step("CreateTransfer")
        return self.transfers[name]

    async def _cancel(self, name: str) -> transfer_pb2.Transfer:
        await self._step("CancelTransfer")
        before = transfer_pb2.Transfer()
        before.CopyFrom(self.transfers[name])
        self.after_cancel(before)
        return before

    async def _withdraw(self, request_id: str) -> transfer_pb2.Transfer:
        await self._step("WithdrawTransfer")
        found = next((transfer for transfer in self.transfers.values() if transfer.request_id == request_id), None)
        if found is None:
            return transfer_pb2.Transfer(
                request_id=request_id,
                state=transfer_pb2.TRANSFER_STATE_CANCELLED,
                destination_settled=self.nothing_left_behind,
            )
        before = transfer_pb2.Transfer()
        before.CopyFrom(found)
        if found.state not in TERMINAL_STATES:
            self.after_cancel(before)
        return before

    async def _watch(self, name: str) -> transfer_pb2.Transfer:
        await self._step("WatchTransfer")
        if name not in self.transfers:
            raise NotFound.of_field("name", name, "no such transfer")
        return self.transfers[name]

    @unary_method
    async def GetTransfer(
        self, request: transfer_pb2.GetTransferRequest, context: Context
    ) -> transfer_pb2.GetTransferResponse:
        await self._step("GetTransfer")
        if request.name not in self.transfers:
            raise NotFound.of_field("name", request.name, "no such transfer")
        return transfer_pb2.GetTransferResponse(transfer=self.transfers[request.name])

    @unary_method
    async def CancelTransfer(
        self, request: transfer_pb2.CancelTransferRequest, context: Context
    ) -> transfer_pb2.CancelTransferResponse:
        return transfer_pb2.CancelTransferResponse(transfer=await self._cancel(request.name))

    @unary_method
    async def CreateTransfer(
        self, request: transfer_pb2.CreateTransferRequest, context: Context
    ) -> transfer_pb2.CreateTransferResponse:
        return transfer_pb2.CreateTransferResponse(transfer=await self._create(request))

    @stream_method
    async def WatchTransfers(
        self, request: transfer_pb2.WatchTransfersRequest, context: Context
    ) -> AsyncIterator[transfer_pb2.WatchTransfersResponse]:
        await self._step("WatchTransfers")
        yield transfer_pb2.WatchTransfersResponse(revision=request.after_revision)
