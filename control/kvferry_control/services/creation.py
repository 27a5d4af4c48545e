"""From a request for a transfer to the transfer, whichever way the request came; and from there to its end."""

from kvferry.core.checksums.shares import EVERY_MAX
from kvferry.core.errors import Cancelled, InvalidArgument
from kvferry.core.reasons import Reason
from kvferry.rpc.layouts import blocks_by_group
from kvferry.rpc.times import checked_seconds
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry_control.config import LimitsSection
from kvferry_control.requests import check_id, fingerprint
from kvferry_control.transfers.attempts import failure_to_wire
from kvferry_control.transfers.machine import Failure
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

    def make(self, request: pb.CreateTransferRequest, engine_life: str = "") -> TransferRecord:
        """Start a transfer, or give the one that this request started before.

        Raises:
            KvferryError: why it is not made.
        """
        request_id = check_id("request_id", request.request_id)
        if self._transfers.table.is_known(request_id):
            return self._transfers.table.known(request_id, _fingerprint(request))
        if request_id in self._transfers.table.withdrawn:
            raise Cancelled(f"request_id {request_id} was withdrawn before it came")
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
        record.engine_life = engine_life
        return record

    def withdraw(self, request_id: str) -> TransferRecord | pb.Transfer:
        """End what a request has made, at most ``SETTLE_BOUND_S`` later; what has made nothing here makes nothing more.

        Raises:
            InvalidArgument: it is no request id.
        """
        table = self._transfers.table
        if table.is_known(check_id("request_id", request_id)):
            record = table.of_request(request_id)
            self._transfers.cancel(record)
            return record
        table.withdraw(request_id)
        why = f"request_id {request_id} has made no transfer here, and makes none any more"
        return pb.Transfer(
            request_id=request_id,
            state=pb.TRANSFER_STATE_CANCELLED,
            destination_worker=f"workers/{self._worker.name}",
            failure=failure_to_wire(Failure(Reason.CANCELLED, why)),
            # An earlier life of this control may have made one.
            destination_settled=not self._transfers.settling.left.ranks,
        )

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
