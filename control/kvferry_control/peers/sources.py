"""Source workers: how to reach them, what they hold, and whether they can be paired with this worker.

What does not change while a worker lives is asked for once per incarnation and kept until the worker is gone from the
snapshot.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grpc import aio

from kvferry.core.errors import DeadlineExceeded, KvferryError, LayoutMismatch, NotReady, PeerError
from kvferry.core.layouts import WorkerLayout, validate_layout
from kvferry.core.pairing import Mismatch, mismatches
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry.negotiation.v1.negotiation_pb2_grpc import NegotiationServiceStub
from kvferry.rpc.layouts import layout_from_wire
from kvferry.rpc.options import channel_options
from kvferry_control.peers.session import NegotiationSession
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import PROTOCOL_VERSION, WorkerRecord
from kvferry_control.tasks import Spawn

SOURCES_MAX = 4_096
ATTEMPTS = 3
ATTEMPT_PAUSE_S = 0.1
DEADLINE_MARGIN_S = 0.02
"""The source gets a deadline this much earlier than ours, so that its answer, even a refusal, still arrives in time."""


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
    verdict: tuple[WorkerLayout, tuple[Mismatch, ...]] | None = None
    """Whether it can be paired with the layout named first."""

    def is_life_of(self, record: WorkerRecord) -> bool:
        """Whether ``record`` is of this life."""
        return (self.incarnation, self.instance_id) == (record.incarnation, record.instance_id)

    def peer(self, rank: int) -> str:
        """The name under which our data planes know a rank of this source."""
        return f"{self.worker}@{self.incarnation:x}/{rank}/{self.access[rank].boot_id.hex()}"


class Sources:
    """Source workers by name and incarnation."""

    def __init__(self, worker: str, links: Sequence[RankLink], spawn: Spawn) -> None:
        self._worker = worker
        self._links = links
        self._spawn = spawn
        self._sources: dict[tuple[str, int], Source] = {}

    async def negotiate(
        self, record: WorkerRecord, transfer: str, handle: bytes, incarnation: int, deadline: float
    ) -> tuple[Source, pb.NegotiateResponse]:
        """Ask a source for a publication; ``deadline`` is monotonic, ``incarnation`` is this worker's.

        Raises:
            KvferryError: the source refused, with its reason; or it cannot be reached before the deadline.
        """
        source = self._source(record)
        request = pb.NegotiateRequest(
            protocol_version=PROTOCOL_VERSION,
            destination_worker=self._worker,
            destination_incarnation=incarnation,
            transfer=transfer,
            handle=handle,
            want_description=source.layout is None,
        )
        response = await self._ask(source, request, deadline)
        if response.incarnation != source.incarnation:
            raise PeerError(f"workers/{source.worker} has become incarnation {response.incarnation}")
        if response.HasField("description"):
            self._learn(source, response.description)
        return source, response

    async def checksums(
        self, source: Source, transfer: str, handle: bytes, scope: pb.ChecksumScope, deadline: float
    ) -> dict[int, pb.RankChecksums]:
        """Ask a source for checksums of a publication, by rank.

        Raises:
            KvferryError: the source refused, with its reason; or it cannot be reached before the deadline.
        """
        request = pb.ChecksumsRequest(transfer=transfer, handle=handle, scope=scope)
        left = deadline - time.monotonic() - DEADLINE_MARGIN_S
        if left <= 0:
            raise DeadlineExceeded(f"no time is left to ask workers/{source.worker} for checksums")
        try:
            response = await source.session.checksums(request, left)
        except KvferryError as failure:
            raise _located(failure, source) from failure
        return {checksums.rank: checksums for checksums in response.ranks}

    def require_pairable(self, source: Source, destination: WorkerLayout) -> None:
        """Refuse a pair whose layouts do not fit.

        Raises:
            LayoutMismatch: names the first field and both values; the message lists all of them.
        """
        if source.layout is None:
            raise PeerError(f"workers/{source.worker} has not described itself")
        if source.verdict is None or source.verdict[0] is not destination:
            source.verdict = destination, mismatches(source.layout, destination)
        found = source.verdict[1]
        if found:
            first = found[0]
            raise LayoutMismatch(
                "; ".join(str(mismatch) for mismatch in found),
                metadata={"field": first.field, "source": first.source, "destination": first.destination},
            )

    def connect(self, source: Source, link: RankLink) -> None:
        """Tell one of our data planes about all ranks of a source, once."""
        if link.rank in source.connected or source.wire is None:
            return
        for access in source.access:
            command = dp.ConnectPeer(peer=source.peer(access.rank), access=access, layout=source.wire.layout)
            link.post(dp.SessionRequest(connect_peer=command))
        source.connected.add(link.rank)

    def link_up(self, link: RankLink) -> None:
        """A data plane may have forgotten whom it knew: tell it again when it is next needed."""
        for source in self._sources.values():
            source.connected.discard(link.rank)

    def conclude(self, record: WorkerRecord, transfer: str, handle: bytes, succeeded: bool) -> None:
        """Tell a source that a transfer is over. If this is lost, the lease ends by itself."""
        conclusion = pb.CONCLUSION_SUCCEEDED if succeeded else pb.CONCLUSION_ABANDONED
        request = pb.ConcludeRequest(transfer=transfer, handle=handle, conclusion=conclusion)
        self._source(record).session.conclude(request)

    def workers_changed(self, workers: Mapping[str, WorkerRecord]) -> None:
        """Forget sources that are gone or have begun another life."""
        for key, source in list(self._sources.items()):
            record = workers.get(source.worker)
            if record is None or not source.is_life_of(record):
                del self._sources[key]
                self._drop(source)

    async def close(self) -> None:
        """Close all channels."""
        for source in self._sources.values():
            source.session.close(NotReady("this control stops"))
            await source.channel.close()
        self._sources.clear()

    def _source(self, record: WorkerRecord) -> Source:
        key = (record.name, record.incarnation)
        source = self._sources.get(key)
        if source is not None and source.is_life_of(record) and source.endpoint == record.endpoint:
            return source
        if source is not None:
            self._drop(self._sources.pop(key))
        if len(self._sources) >= SOURCES_MAX:
            self._drop(self._sources.pop(next(iter(self._sources))))
        channel = aio.insecure_channel(record.endpoint, options=channel_options())
        source = Source(
            worker=record.name,
            incarnation=record.incarnation,
            instance_id=record.instance_id,
            endpoint=record.endpoint,
            channel=channel,
            session=NegotiationSession(record.name, NegotiationServiceStub(channel), self._spawn),
        )
        self._sources[key] = source
        return source

    async def _ask(self, source: Source, request: pb.NegotiateRequest, deadline: float) -> pb.NegotiateResponse:
        attempt = 0
        while True:
            attempt += 1
            left = deadline - time.monotonic() - DEADLINE_MARGIN_S
            if left <= 0:
                raise DeadlineExceeded(f"no answer from workers/{source.worker} before the deadline")
            try:
                return await source.session.negotiate(request, left)
            except KvferryError as failure:
                if failure.reason is not Reason.PEER_UNREACHABLE or attempt >= ATTEMPTS:
                    raise _located(failure, source) from failure
            await asyncio.sleep(min(ATTEMPT_PAUSE_S, max(left, 0)))

    def _learn(self, source: Source, description: pb.SourceDescription) -> None:
        layout = layout_from_wire(description.layout)
        validate_layout(layout, {access.rank: access.pool_bytes for access in description.ranks})
        if [access.rank for access in description.ranks] != [rank.rank for rank in layout.ranks]:
            raise PeerError(f"workers/{source.worker} describes ranks that its layout does not have")
        source.access = tuple(description.ranks)
        source.wire = description
        source.layout = layout

    def _drop(self, source: Source) -> None:
        left = PeerError(f"workers/{source.worker} left the cluster while it was asked", reason=Reason.PEER_LOST)
        source.session.close(left)
        for link in self._links:
            if link.up and link.rank in source.connected:
                for access in source.access:
                    link.post(dp.SessionRequest(disconnect_peer=dp.DisconnectPeer(peer=source.peer(access.rank))))
        self._spawn(source.channel.close(grace=1.0))


def _located(failure: KvferryError, source: Source) -> KvferryError:
    """The failure of a call with the peer's name, where gRPC itself made it."""
    if failure.reason in (Reason.PEER_UNREACHABLE, Reason.DEADLINE_EXCEEDED):
        where = {"worker": source.worker, "endpoint": source.endpoint}
        message = f"workers/{source.worker} at {source.endpoint}: {failure.message}"
        return type(failure)(message, reason=failure.reason, metadata=where)
    return failure
