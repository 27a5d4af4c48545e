"""One life of a source worker, as this control knows it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from grpc import aio

from kvferry.core.errors import KvferryError
from kvferry.core.layouts import WorkerLayout
from kvferry.core.pairing import Mismatch
from kvferry.core.reasons import Reason
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry_control.peers.attested import Attested
from kvferry_control.peers.session import NegotiationSession
from kvferry_control.records import WorkerRecord


@dataclass(slots=True)
class Source:
    """One life of a source worker."""

    worker: str
    incarnation: int
    instance_id: bytes
    """Tells lives apart that have the same incarnation, as may be after etcd has lost its data."""
    endpoint: str
    channel: aio.Channel
    session: NegotiationSession
    layout: WorkerLayout | None = None
    access: Sequence[pb.RankAccess] = ()
    wire: pb.SourceDescription | None = None
    connected: set[int] = field(default_factory=set)
    """Ranks of this worker whose data plane was told about this source."""
    attested: Attested = field(default_factory=Attested)
    """What these data planes have found out about the ways to it."""
    to_probe: set[int] = field(default_factory=set)
    """Ranks of this worker whose data plane is to probe it again when it is next told about it."""
    doubt: asyncio.TimerHandle | None = None
    """When what was refused is doubted."""
    verdict: tuple[WorkerLayout, tuple[Mismatch, ...]] | None = None
    """Whether it can be paired with the layout named first."""

    def is_life_of(self, record: WorkerRecord) -> bool:
        """Whether ``record`` is of this life."""
        return (self.incarnation, self.instance_id) == (record.incarnation, record.instance_id)

    def peer(self, rank: int) -> str:
        """The name under which our data planes know a rank of this source."""
        return f"{self.worker}@{self.incarnation:x}/{rank}/{self.access[rank].boot_id.hex()}"


def located(failure: KvferryError, source: Source) -> KvferryError:
    """The failure of a call with the peer's name, where gRPC itself made it."""
    if failure.reason in (Reason.PEER_UNREACHABLE, Reason.DEADLINE_EXCEEDED):
        where = {"worker": source.worker, "endpoint": source.endpoint}
        message = f"workers/{source.worker} at {source.endpoint}: {failure.message}"
        return type(failure)(message, reason=failure.reason, metadata=where)
    return failure
