"""From a request for a transfer to the transfer, whichever way the request came."""

from kvferry.core.checksums.shares import EVERY_MAX
from kvferry.core.errors import InvalidArgument
from kvferry.rpc.layouts import blocks_by_group
from kvferry.rpc.times import checked_seconds
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry_control.config import LimitsSection
from kvferry_control.requests import check_id, fingerprint
from kvferry_control.transfers.manager import Transfers
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.request import PullRequest
from kvferry_control.worker import LocalWorker


class TransferMaker:
    """Makes transfers for the engine."""

    def __init__(
        self, worker: LocalWorker, transfers: Transfers, limits: LimitsSection, timeout_s: float, compare_every: int
    ) -> None:
        """``timeout_s`` and ``compare_every`` are for transfers that do not say it themselves."""
        self._worker = worker
        self._transfers = transfers
        self._limits = limits
        self._timeout_s_default = timeout_s
        self._compare_every_default = compare_every

    def _compare_every(self, request: pb.CreateTransferRequest) -> int:
        if not request.HasField("compare_every"):
            return self._compare_every_default
        if request.compare_every > EVERY_MAX:
            why = f"must be 0 to {EVERY_MAX}"
            raise InvalidArgument.of_field("compare_every", request.compare_every, why)
        return request.compare_every

    def make(self, request: pb.CreateTransferRequest) -> TransferRecord:
        """Start a transfer, or give the one that this request started before.

        Raises:
            KvferryError: why it is not made.
        """
        request_id = check_id("request_id", request.request_id)
        if self._transfers.table.is_known(request_id):
            return self._transfers.table.known(request_id, _fingerprint(request))
        layout = self._worker.require_ready()
        self._worker.require_mapped(request.mapped_pools)
        wanted = PullRequest(
            request_id=request_id,
            handle=request.handle,
            blocks=blocks_by_group(request.destination_blocks),
            timeout_s=self._timeout_of(request),
            priority=request.priority,
            first_token=request.first_token,
            data_parallel_rank=request.data_parallel_rank,
            resumable=request.resumable,
            queue_timeout_s=self._queue_timeout_of(request),
            compare_every=self._compare_every(request),
        )
        record = self._transfers.create(wanted, layout, self._worker.identity.incarnation)
        # Of use only when the request comes again: the source is asked before.
        record.fingerprint = _fingerprint(request)
        return record

    def _timeout_of(self, request: pb.CreateTransferRequest) -> float:
        if not request.HasField("timeout"):
            return self._timeout_s_default
        return checked_seconds("timeout", request.timeout, self._limits.timeout_s)

    def _queue_timeout_of(self, request: pb.CreateTransferRequest) -> float | None:
        if not request.HasField("queue_timeout"):
            return None
        return checked_seconds("queue_timeout", request.queue_timeout, self._limits.timeout_s)


def _fingerprint(request: pb.CreateTransferRequest) -> bytes:
    return fingerprint(
        pb.CreateTransferRequest(
            handle=request.handle,
            destination_blocks=request.destination_blocks,
            priority=request.priority,
            first_token=request.first_token,
            data_parallel_rank=request.data_parallel_rank,
            resumable=request.resumable,
            compare_every=request.compare_every if request.HasField("compare_every") else None,
        )
    )
