"""TransferService: pulls into this worker."""

from collections.abc import AsyncIterator

from grpc import aio

from kvferry.core.errors import PermissionDenied, ResourceExhausted
from kvferry.rpc.errors import stream_method, unary_method
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry.transfer.v1.transfer_pb2_grpc import TransferServiceServicer
from kvferry_control.config import LimitsSection
from kvferry_control.requests import id_of, page
from kvferry_control.services.creation import TransferMaker
from kvferry_control.transfers.manager import Transfers


class TransferService(TransferServiceServicer):
    """Serves the engine in full; routers see and end transfers, but only the engine can name its blocks."""

    def __init__(self, maker: TransferMaker, transfers: Transfers, limits: LimitsSection, for_engine: bool) -> None:
        self._maker = maker
        self._transfers = transfers
        self._limits = limits
        self._for_engine = for_engine
        self._watchers = 0

    @unary_method
    async def CreateTransfer(
        self,
        request: pb.CreateTransferRequest,
        context: aio.ServicerContext[pb.CreateTransferRequest, pb.CreateTransferResponse],
    ) -> pb.CreateTransferResponse:
        if not self._for_engine:
            raise PermissionDenied("transfers are created on the engine's socket, since they name the engine's blocks")
        return pb.CreateTransferResponse(transfer=self._maker.make(request).to_wire())

    @unary_method
    async def GetTransfer(
        self,
        request: pb.GetTransferRequest,
        context: aio.ServicerContext[pb.GetTransferRequest, pb.GetTransferResponse],
    ) -> pb.GetTransferResponse:
        record = self._transfers.table.get(id_of("transfers", request.name))
        return pb.GetTransferResponse(transfer=record.to_wire())

    @unary_method
    async def ListTransfers(
        self,
        request: pb.ListTransfersRequest,
        context: aio.ServicerContext[pb.ListTransfersRequest, pb.ListTransfersResponse],
    ) -> pb.ListTransfersResponse:
        listed = self._transfers.table.newest_first()
        chosen, token = page(listed, request.page_size, request.page_token, lambda record: record.id)
        return pb.ListTransfersResponse(transfers=[r.to_wire() for r in chosen], next_page_token=token)

    @stream_method
    async def WatchTransfers(
        self,
        request: pb.WatchTransfersRequest,
        context: aio.ServicerContext[pb.WatchTransfersRequest, pb.WatchTransfersResponse],
    ) -> AsyncIterator[pb.WatchTransfersResponse]:
        table = self._transfers.table
        only = id_of("transfers", request.name) if request.name else None
        if only is not None:
            table.get(only)
        if self._watchers >= self._limits.watchers:
            raise ResourceExhausted.of_bound("limits.watchers", self._limits.watchers, "so many watch transfers")
        self._watchers += 1
        try:
            # A revision that was never reached here is of an earlier control: its watcher has seen nothing of this one.
            after = request.after_revision if request.after_revision <= table.revision else 0
            yield pb.WatchTransfersResponse(revision=after)
            async for record in table.changes(after):
                if only is not None and record.id != only:
                    continue
                if request.terminal_only and not record.life.state.terminal:
                    continue
                yield pb.WatchTransfersResponse(transfer=record.to_wire(), revision=record.revision)
                if only is not None and record.life.state.terminal:
                    return
        finally:
            self._watchers -= 1

    @unary_method
    async def CancelTransfer(
        self,
        request: pb.CancelTransferRequest,
        context: aio.ServicerContext[pb.CancelTransferRequest, pb.CancelTransferResponse],
    ) -> pb.CancelTransferResponse:
        record = self._transfers.table.get(id_of("transfers", request.name))
        self._transfers.cancel(record)
        return pb.CancelTransferResponse(transfer=record.to_wire())
