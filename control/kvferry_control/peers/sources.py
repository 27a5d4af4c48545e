"""Source workers: how to reach them, what they hold, and whether they can be paired with this worker.

What does not change while a worker lives is asked for once per incarnation and kept until the worker is gone from the
snapshot.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from grpc import aio

from kvferry.core.errors import DeadlineExceeded, KvferryError, LayoutMismatch, NotReady, PathRefused, PeerError
from kvferry.core.layouts import WorkerLayout, validate_layout
from kvferry.core.pairing import Mismatch, mismatches
from kvferry.core.path_floor import ANY_PATH, PathFloor
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry.negotiation.v1.negotiation_pb2_grpc import NegotiationServiceStub
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.layouts import layout_from_wire
from kvferry.rpc.options import channel_options
from kvferry.worker.v1 import worker_pb2 as pb_worker
from kvferry.worker.v1.probe_pb2 import RankSettings
from kvferry_control.pair_ways import refusal_of, way_mismatches
from kvferry_control.peers.negotiation import Answered, Negotiation
from kvferry_control.peers.session import NegotiationSession
from kvferry_control.peers.source import Source, located
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import PROTOCOL_VERSION, WorkerRecord
from kvferry_control.tasks import Spawn

SOURCES_MAX = 4_096
ATTESTED_SOURCES_MAX = 256
ATTESTED_WITHIN_S = 5.0
"""With a floor, the first pull waits so long for the probe."""
REFUSED_FOR_S = 60.0
"""A pair that was refused for what was attested is offered again after this; the pull that takes it has it probed."""
DEADLINE_MARGIN_S = 0.02
"""The source gets a deadline this much earlier than ours, so that its answer, even a refusal, still arrives in time."""


class Sources:
    """Source workers by name and incarnation."""

    def __init__(self, worker: str, links: Sequence[RankLink], spawn: Spawn, floor: PathFloor = ANY_PATH) -> None:
        """``floor``: what is demanded of the ways on which this worker pulls."""
        self.floor = floor
        self.on_attested: Callable[[], None] = lambda: None
        """Told when :meth:`attested` has changed."""
        self._ways: dict[str, tuple[WorkerRecord, WorkerRecord, tuple[Mismatch, ...]]] = {}
        """Whether sources can be read at all, by names, and of which records that holds."""
        self._worker = worker
        self._links = links
        self._spawn = spawn
        self._sources: dict[tuple[str, int], Source] = {}
        self._peers: dict[str, tuple[Source, int]] = {}
        """Ranks of sources, by the names under which data planes know them."""

    def ask(
        self, record: WorkerRecord, transfer: str, handle: bytes, incarnation: int, deadline: float, answered: Answered
    ) -> Negotiation:
        """Ask a source for a publication; ``deadline`` is monotonic, ``incarnation`` is this worker's.

        ``answered`` hears of it later, never before this returns: the source's refusal, or that it cannot be reached
        before the deadline, included.
        """
        source = self._source(record)
        request = pb.NegotiateRequest(
            protocol_version=PROTOCOL_VERSION,
            destination_worker=self._worker,
            destination_incarnation=incarnation,
            transfer=transfer,
            handle=handle,
            want_description=source.layout is None,
            will_probe=not source.connected,
        )
        negotiation = Negotiation(source, request, deadline - DEADLINE_MARGIN_S, self._take, answered)
        if self.announced(record, handle) is None:
            negotiation.ask()
        else:
            # What was told is enough to read by: that goes first.
            negotiation.ask_soon()
        return negotiation

    def announced(self, record: WorkerRecord, handle: bytes) -> tuple[Source, pb.NegotiateResponse] | None:
        """A source that every reading data plane may read at once, and what it has told of a publication; None if it
        has not, or has to be asked for more.
        """
        source = self._sources.get((record.name, record.incarnation))
        if source is None or source.layout is None or not source.is_life_of(record):
            return None
        answer = source.session.announced.find(handle)
        return None if answer is None or answer.incarnation != source.incarnation else (source, answer)

    async def describe(self, record: WorkerRecord, time_s: float) -> tuple[Source, Sequence[RankSettings]]:
        """Ask a source what it is, without a publication; its data planes serve readers for so long.

        Returns the source, and what the environments of its data planes set of their transports.

        Raises:
            KvferryError: the source refused, with its reason; or it cannot be reached in time.
        """
        source = self._source(record)
        request = pb.DescribeRequest(protocol_version=PROTOCOL_VERSION, destination_worker=self._worker)
        try:
            response = await NegotiationServiceStub(source.channel).Describe(request, timeout=time_s)
        except aio.AioRpcError as error:
            raise located(from_rpc(error), source) from error
        if response.incarnation != source.incarnation:
            raise PeerError(f"workers/{source.worker} has become incarnation {response.incarnation}")
        self._learn(source, response.description)
        return source, response.settings

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
            raise located(failure, source) from failure
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
            self._peers[source.peer(access.rank)] = source, access.rank
            command = dp.ConnectPeer(
                peer=source.peer(access.rank),
                access=access,
                layout=source.wire.layout,
                probe_again=link.rank in source.to_probe,
            )
            link.post(dp.SessionRequest(connect_peer=command))
        source.connected.add(link.rank)
        source.to_probe.discard(link.rank)

    def link_up(self, link: RankLink, *, is_new: bool) -> None:
        """A data plane may have forgotten whom it knew: tell it again when it is next needed.

        ``is_new``: it has begun another life, and nothing that the earlier one has attested holds.
        """
        for source in self._sources.values():
            source.connected.discard(link.rank)
            if is_new:
                source.attested.forget(link.rank)

    def peer_attested(self, rank: int, found: dp.PeerAttested) -> None:
        """Take in what a data plane has found out; nothing if the source that it is about is gone."""
        source, source_rank = self._peers.get(found.peer, (None, 0))
        if source is not None:
            source.attested.take((rank, source_rank), found)
            self.on_attested()

    def require_ways(self, source: WorkerRecord, own: WorkerRecord | None) -> None:
        """Refuse a source that cannot be read on any way, or on none that is allowed, before it is asked for anything.

        Raises:
            TransportMismatch, PathRefused: names the first field and both values; the message lists all of them.
        """
        if own is None:
            # Not in the snapshot: etcd is away, and known pairs go on.
            return
        known = self._ways.get(source.name)
        if known is None or known[0] is not source or known[1] is not own:
            known = self._ways[source.name] = source, own, way_mismatches(source, own)
        if known[2]:
            raise refusal_of(known[2])

    async def require_floor(self, source: Source, links: Sequence[RankLink], deadline: float) -> None:
        """Refuse a source whose ways to these ranks are not what is demanded; waits until they are attested, bounded.

        Raises:
            PathRefused: names what is demanded, and what there is.
        """
        if not self.floor.needs_attestation:
            return
        pairs = [(link.rank, access.rank) for link in links for access in source.access]
        if source.attested.forget_refused(pairs):
            # Who could not be attested is tried again.
            source.connected.difference_update(link.rank for link in links)
        for link in links:
            self.connect(source, link)
        left = deadline - time.monotonic() - DEADLINE_MARGIN_S
        await source.attested.wait(pairs, min(max(left, 0.0), ATTESTED_WITHIN_S))
        try:
            source.attested.require(pairs, self.floor, source.worker)
        except PathRefused:
            if source.doubt is None:
                loop = asyncio.get_running_loop()
                source.doubt = loop.call_later(REFUSED_FOR_S, self._doubt, source)
            raise

    def _doubt(self, source: Source) -> None:
        """What was refused may have become better: nothing is known any more, and the next pull has it probed again."""
        source.doubt = None
        source.to_probe = set(source.connected)
        source.connected.clear()
        source.attested.clear()
        self.on_attested()

    def attested(self) -> dict[str, pb_worker.AttestedSource]:
        """What was attested, by names of sources: the latest ``ATTESTED_SOURCES_MAX`` that were asked for anything."""
        return {
            source.worker: pb_worker.AttestedSource(
                worker=source.worker,
                incarnation=source.incarnation,
                instance_id=source.instance_id,
                routes=source.attested.routes(),
                refusal=source.attested.refusal(),
            )
            for source in list(self._sources.values())[-ATTESTED_SOURCES_MAX:]
            if source.attested.is_known
        }

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

    def _take(self, source: Source, answer: pb.NegotiateResponse) -> None:
        if answer.incarnation != source.incarnation:
            raise PeerError(f"workers/{source.worker} has become incarnation {answer.incarnation}")
        if answer.HasField("description"):
            self._learn(source, answer.description)

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
        for access in source.access:
            self._peers.pop(source.peer(access.rank), None)
        self._ways.pop(source.worker, None)
        if source.doubt is not None:
            source.doubt.cancel()
        self._spawn(source.channel.close(grace=1.0))
