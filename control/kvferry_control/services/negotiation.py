"""NegotiationService: what the controls of decode workers ask of this worker as a source."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from grpc import aio

from kvferry.core.errors import KvferryError, LeaseEnded, NotFound, NotReady, OperatorError, ResourceExhausted
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry.negotiation.v1.negotiation_pb2_grpc import NegotiationServiceServicer
from kvferry.rpc.errors import abort, unary_method
from kvferry.rpc.lanes import LaneServer
from kvferry.rpc.layouts import layout_to_wire
from kvferry.rpc.streams import StreamServer
from kvferry.rpc.times import duration, put_duration
from kvferry_control.config import LimitsSection
from kvferry_control.handles import OwnHandles
from kvferry_control.metrics import Children, ControlMetrics
from kvferry_control.publications.machine import State
from kvferry_control.publications.manager import Publication, Publications
from kvferry_control.ranks.checksums import checksums_of
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import PROTOCOL_VERSION
from kvferry_control.requests import check_id
from kvferry_control.services.peer_session import PeerSession, message_of
from kvferry_control.worker import LocalWorker

SESSIONS_MAX = 4_096
TOLD_BLOCKS_MAX = 1_024
"""Blocks of a publication that is told of."""
EXPECT_READERS_S_MAX = 60.0
EXPECT_PROBES_S = 5.0
"""A reader that is new probes every rank, beside its first transfer."""
EXPECT_AHEAD_S = 1.0
"""Windows are asked for this much longer, so that transfers in quick succession share one. The data planes rest so long
after the last reader."""


class NegotiationService(NegotiationServiceServicer):
    """Serves peers."""

    def __init__(
        self,
        worker: LocalWorker,
        publications: Publications,
        links: Sequence[RankLink],
        metrics: ControlMetrics,
        lanes: LaneServer,
        limits: LimitsSection,
    ) -> None:
        self._worker = worker
        self._publications = publications
        self._handles = OwnHandles()
        self._links = links
        self._negotiations = Children(metrics.negotiations)
        self._lanes = lanes
        self._limits = limits
        self._expected: dict[int, tuple[int, float]] = {}
        """By rank: in which session its data plane was told to expect readers, and until when."""
        self._rest_from = 0.0
        """Until when the data planes may not rest, whoever is left."""
        self._looking = False
        # In the order of their coming, so that they are told in the same order each time.
        self._sessions: dict[PeerSession, None] = {}
        self._announced: dict[str, bytes] = {}
        """Handles of live publications that readers were told of, by publication."""

    @unary_method
    async def Negotiate(
        self, request: pb.NegotiateRequest, context: aio.ServicerContext[pb.NegotiateRequest, pb.NegotiateResponse]
    ) -> pb.NegotiateResponse:
        response = pb.NegotiateResponse()
        self.negotiate(request, context.time_remaining(), response)
        return response

    @unary_method
    async def Conclude(
        self, request: pb.ConcludeRequest, context: aio.ServicerContext[pb.ConcludeRequest, pb.ConcludeResponse]
    ) -> pb.ConcludeResponse:
        self.conclude(request)
        return pb.ConcludeResponse()

    @unary_method
    async def Describe(
        self, request: pb.DescribeRequest, context: aio.ServicerContext[pb.DescribeRequest, pb.DescribeResponse]
    ) -> pb.DescribeResponse:
        self._require_version(request.protocol_version)
        description = self._describe()
        self._expect_readers(min(context.time_remaining() or EXPECT_READERS_S_MAX, EXPECT_READERS_S_MAX), 0.0)
        return pb.DescribeResponse(
            incarnation=self._worker.identity.incarnation, description=description, settings=self._worker.settings()
        )

    @unary_method
    async def Checksums(
        self, request: pb.ChecksumsRequest, context: aio.ServicerContext[pb.ChecksumsRequest, pb.ChecksumsResponse]
    ) -> pb.ChecksumsResponse:
        publication = self._find(request.handle)
        if publication.life.state is not State.LIVE:
            raise LeaseEnded.of_field("publication", publication.name, f"is {publication.life.state.name}")
        command = dp.SumChecksums(publication=publication.id, scope=request.scope)
        links = [link for link in self._links if link.rank in publication.ranks]
        return pb.ChecksumsResponse(ranks=await checksums_of(links, command))

    # The generated base class speaks of the generator style; this method reads and writes through its context.
    async def Session(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[pb.SessionRequest],
        context: aio.ServicerContext[pb.SessionRequest, pb.SessionResponse],
    ) -> None:
        if len(self._sessions) >= SESSIONS_MAX:
            await abort(context, ResourceExhausted.of_bound("peer_sessions", SESSIONS_MAX, "so many are open"))
        session = PeerSession(self)
        self._sessions[session] = None
        try:
            stream = StreamServer(pb.SessionRequest, session.handle, session.outgoing, message_of)
            await stream.serve(request_iterator, context, self._lanes)
        finally:
            del self._sessions[session]

    def negotiate(self, request: pb.NegotiateRequest, time_left: float | None, into: pb.NegotiateResponse) -> None:
        """Note a reader and write what it needs ``into`` the answer, which it awaits for ``time_left`` seconds.

        Raises:
            KvferryError: why it may not read.
        """
        try:
            self._negotiate(request, time_left, into)
        except KvferryError as error:
            self._negotiations[error.reason.value].inc()
            raise
        self._negotiations[""].inc()

    def announce(self, handle: bytes, publication: Publication) -> None:
        """Tell those who read from this worker of a publication, so that whoever is to read it need not wait for the
        answer to its negotiation. With many readers most would be told in vain: they ask.
        """
        few = 0 < len(self._sessions) <= self._limits.told_readers and publication.block_count <= TOLD_BLOCKS_MAX
        if not few or publication.life.state is not State.LIVE:
            return
        announcement = pb.Announcement(handle=handle)
        self._answer(publication, announcement.answer)
        self._announced[publication.id] = handle
        for session in self._sessions:
            session.announce(announcement)

    def publication_ended(self, publication: Publication) -> None:
        """Take an announcement back."""
        handle = self._announced.pop(publication.id, None)
        if handle is not None:
            for session in self._sessions:
                session.withdraw(handle)

    def conclude(self, request: pb.ConcludeRequest) -> None:
        """Note that a reader is done.

        Raises:
            KvferryError: the handle is not one of ours, or its publication has ended.
        """
        publication = self._find(request.handle)
        succeeded = request.conclusion == pb.CONCLUSION_SUCCEEDED
        self._publications.end_read(publication, check_id("transfer", request.transfer), succeeded)
        self._look_later()

    def _negotiate(self, request: pb.NegotiateRequest, time_left: float | None, into: pb.NegotiateResponse) -> None:
        self._require_version(request.protocol_version)
        transfer = check_id("transfer", request.transfer)
        publication = self._find(request.handle)
        description = self._describe() if request.want_description else None
        self._publications.begin_read(publication, transfer)
        # Whoever asks for a description reads for the first time, and probes.
        ahead_s = EXPECT_PROBES_S if request.will_probe or description is not None else EXPECT_AHEAD_S
        self._expect_readers(min(time_left or EXPECT_READERS_S_MAX, EXPECT_READERS_S_MAX), ahead_s)
        self._answer(publication, into)
        if description is not None:
            into.description.CopyFrom(description)

    def _answer(self, publication: Publication, into: pb.NegotiateResponse) -> None:
        into.incarnation = self._worker.identity.incarnation
        into.blocks.extend(publication.blocks.values())
        into.token_count = publication.token_count
        into.leases.extend([publication.leases[rank] for rank in sorted(publication.leases)])
        put_duration(into.time_left, publication.expires_at - time.monotonic())

    def _require_version(self, version: int) -> None:
        if version != PROTOCOL_VERSION:
            raise OperatorError.of_field(
                "protocol_version",
                version,
                f"workers/{self._worker.name} speaks {PROTOCOL_VERSION}",
                reason=Reason.PROTOCOL_MISMATCH,
            )

    def _find(self, handle: bytes) -> Publication:
        identity = self._worker.identity
        if not identity.incarnation:
            # Restarted a moment ago: which handles are its own it learns from its data planes.
            raise NotReady(f"workers/{self._worker.name} has not taken up its life yet")
        name = self._handles.publication(handle, self._worker.name, identity.incarnation, identity.handle_key)
        try:
            return self._publications.get(name)
        except NotFound as error:
            raise LeaseEnded.of_field("publication", f"publications/{name}", "has ended") from error

    def _describe(self) -> pb.SourceDescription:
        layout = self._worker.require_layout()
        return pb.SourceDescription(layout=layout_to_wire(layout), ranks=self._worker.access())

    def _expect_readers(self, seconds: float, ahead_s: float) -> None:
        now = time.monotonic()
        self._rest_from = max(self._rest_from, now + ahead_s)
        for link in self._links:
            session, until = self._expected.get(link.rank, (0, 0.0))
            if link.up and (session != link.session_count or until < now + max(seconds, ahead_s)):
                link.post(dp.SessionRequest(expect_readers=dp.ExpectReaders(duration=duration(seconds + ahead_s))))
                self._expected[link.rank] = link.session_count, now + seconds + ahead_s

    def _look_for_readers(self) -> None:
        """Let the data planes rest once no reader is left and none has come for a while."""
        self._looking = False
        if self._publications.has_readers:
            return
        if time.monotonic() < self._rest_from:
            self._look_later()
            return
        for link in self._links:
            if link.up:
                link.post(dp.SessionRequest(expect_readers=dp.ExpectReaders(duration=duration(0))))
        self._expected.clear()

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(EXPECT_AHEAD_S, self._look_for_readers)
