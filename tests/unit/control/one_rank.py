"""A destination of one rank, whose source and data plane say what a test has them say."""

from dataclasses import dataclass, field
from unittest.mock import Mock

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import KvferryError
from kvferry.core.layouts import ElementType
from kvferry.core.path_floor import ANY_PATH
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.layout.v1.layout_pb2 import BlockList
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.rpc.reasons import reason_to_wire
from kvferry.transfer.v1 import transfer_pb2
from kvferry_control.config import LimitsSection
from kvferry_control.handles import make_handle
from kvferry_control.metrics import ControlMetrics
from kvferry_control.peers.negotiation import Answered, Negotiation
from kvferry_control.records import WorkerRecord
from kvferry_control.transfers.machine import State
from kvferry_control.transfers.manager import Transfers
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.request import PullRequest

LAYOUT = dense_layout(DenseModel("m", 1, 1, 8, 1, ElementType.INT8), 8)
HANDLE = make_handle("prefill", 3, "p", 1, b"k" * 32)
ANSWER = neg.NegotiateResponse(
    incarnation=3,
    blocks=[BlockList(group="full", block_ids=[5])],
    token_count=1,
    leases=[neg.RankLease(rank=0, slot=1, word=9)],
)


@dataclass
class Bench:
    """A destination of one rank whose source answers when a test says so."""

    told: bool = True
    limits: LimitsSection = field(default_factory=LimitsSection)
    heard: list[Answered] = field(default_factory=list)
    taken_back: int = 0

    def __post_init__(self) -> None:
        self.source = Mock(worker="prefill", connected={0}, layout=LAYOUT)
        self.source.peer = lambda rank: f"prefill/{rank}"
        self.link = Mock(rank=0, up=True)
        sources = Mock(floor=ANY_PATH)
        sources.ask = self._ask
        sources.announced = lambda _worker, _handle: (self.source, ANSWER) if self.told else None
        worker = Mock(spec=WorkerRecord, incarnation=3)
        self.metrics = ControlMetrics()
        self.transfers = Transfers(
            "decode", [self.link], sources, self.limits, self.metrics, Mock(), lambda _name: worker
        )

    def _ask(self, *arguments: object) -> Negotiation:
        heard = arguments[-1]
        assert callable(heard)
        self.heard.append(heard)
        question = Mock(spec=Negotiation)

        def cancel() -> None:
            self.taken_back += 1

        question.cancel = cancel
        return question

    def pull(self, request_id: str = "request", compare_every: int = 0) -> TransferRecord:
        """Begin a transfer."""
        blocks = {"full": BlockList(group="full", block_ids=[2])}
        request = PullRequest(
            request_id=request_id,
            handle=HANDLE,
            blocks=blocks,
            timeout_s=10.0,
            priority=0,
            first_token=0,
            data_parallel_rank=0,
            compare_every=compare_every,
        )
        return self.transfers.create(request, LAYOUT, 1)

    @property
    def reads(self) -> list[dp.Read]:
        """What the data plane was given to read."""
        commands = [call.args[0] for call in self.link.post.call_args_list]
        return [command.read for command in commands if command.WhichOneof("command") == "read"]

    def answer(self, answer: neg.NegotiateResponse | KvferryError = ANSWER) -> None:
        """The source answers."""
        self.heard.pop()(self.source, answer)

    def finish(self, record: TransferRecord, reason: Reason | None = None) -> None:
        """The data plane says that its read is over."""
        failure = None
        if reason is not None:
            failure = transfer_pb2.Failure(reason=reason_to_wire(reason), message="said the data plane")
        event = dp.ReadFinished(transfer=record.id, failure=failure, figures=transfer_pb2.RankFigures())
        self.transfers.read_finished(0, event)


def state_of(record: TransferRecord) -> State:
    """Where a transfer stands now."""
    return record.life.state
