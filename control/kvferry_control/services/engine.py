"""EngineService: what this worker's engine asks, over its Unix socket."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from grpc import aio

from kvferry.core.errors import InvalidArgument, ResourceExhausted
from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.engine.v1.engine_pb2_grpc import EngineServiceServicer
from kvferry.rpc.engine_life import LIFE_KEY
from kvferry.rpc.errors import abort, stream_method, unary_method
from kvferry.rpc.lanes import LaneServer
from kvferry.rpc.layouts import blocks_by_group, layout_from_wire
from kvferry.rpc.streams import StreamServer
from kvferry.rpc.times import checked_seconds, duration
from kvferry_control.blocks import check_blocks, check_tokens, shard_of
from kvferry_control.config import ControlConfig
from kvferry_control.engine_lives import EngineLives
from kvferry_control.handles import make_handle
from kvferry_control.publications.machine import State
from kvferry_control.publications.manager import Publication, Publications
from kvferry_control.ranks.link import RankLink
from kvferry_control.requests import check_id, fingerprint, id_of, page
from kvferry_control.services.pull_session import PullSession, message_of
from kvferry_control.worker import LocalWorker

ENGINE_EVENTS_MAX = 8_192
TOKENS_MAX = 1 << 32
READERS_MAX = 1_000_000
HELD_BLOCKS_MAX = 1_000_000
"""Blocks on one page of held publications: 16 MiB hold three times as many, and one publication has at most so many."""


class EngineService(EngineServiceServicer):
    """Serves the engine. ``pull_session`` makes what serves one stream of a process's pulls; ``layout_replaced`` is
    called when the engine came back with another layout."""

    def __init__(
        self,
        worker: LocalWorker,
        publications: Publications,
        pull_session: Callable[[str], PullSession],
        lives: EngineLives,
        config: ControlConfig,
        busy: Callable[[], bool],
        layout_replaced: Callable[[], None],
        lanes: LaneServer,
    ) -> None:
        self._worker = worker
        self._publications = publications
        self._pull_session = pull_session
        self._lives = lives
        self._limits = config.limits
        self._pull_timeout_s = config.pull_timeout_s
        self._busy = busy
        self._layout_replaced = layout_replaced
        self.on_published: Callable[[bytes, Publication], None] = lambda _handle, _publication: None
        """Told of each publication once it is live, before its engine is."""
        self._lanes = lanes
        self._watchers: set[asyncio.Queue[pb.WatchEngineResponse | None]] = set()
        self._pull_session_count = 0

    @unary_method
    async def OpenEngine(
        self, request: pb.OpenEngineRequest, context: aio.ServicerContext[pb.OpenEngineRequest, pb.OpenEngineResponse]
    ) -> pb.OpenEngineResponse:
        check_id("engine_id", request.engine_id)
        if request.HasField("layout"):
            layout = layout_from_wire(request.layout)
            if request.life and not request.again:
                await self._lives.begin(request.engine_id, request.life)
            elif request.life:
                self._lives.know(request.engine_id, request.life)
            if await self._worker.declare_layout(layout, self._busy):
                self._layout_replaced()
            self._worker.heard_of_engine()
        self._worker.access()
        return pb.OpenEngineResponse(
            worker=self._worker.name,
            incarnation=self._worker.identity.incarnation,
            pools=[rank_pool(link) for link in self._worker.links],
            heartbeat_interval=duration(self._limits.engine_timeout_s / 3),
            pull_timeout=duration(self._pull_timeout_s),
        )

    @unary_method
    async def Publish(
        self, request: pb.PublishRequest, context: aio.ServicerContext[pb.PublishRequest, pb.PublishResponse]
    ) -> pb.PublishResponse:
        layout = self._worker.require_layout()
        request_id = check_id("request_id", request.request_id)
        blocks = blocks_by_group(request.blocks)
        shard = request.data_parallel_rank
        check_blocks("blocks", blocks, shard_of(layout, shard), self._limits.blocks_per_request)
        ttl_s = checked_seconds("ttl", request.ttl, self._limits.ttl_s)
        if not 1 <= request.token_count <= TOKENS_MAX:
            raise InvalidArgument.of_field("token_count", request.token_count, f"must be 1 to {TOKENS_MAX}")
        check_tokens("blocks", blocks, layout, request.token_count)
        if request.expected_reader_count > READERS_MAX:
            raise InvalidArgument.of_field(
                "expected_reader_count", request.expected_reader_count, f"at most {READERS_MAX}"
            )
        body = pb.PublishRequest(
            blocks=request.blocks,
            token_count=request.token_count,
            expected_reader_count=request.expected_reader_count,
            data_parallel_rank=shard,
        )
        body_print = fingerprint(body)
        if self._publications.known(request_id, body_print) is None:
            self._worker.require_ready()
            self._worker.require_mapped(request.mapped_pools)
        publication = await self._publications.publish(
            request_id,
            body_print,
            blocks,
            request.token_count,
            ttl_s,
            request.expected_reader_count,
            frozenset(rank.rank for rank in layout.ranks_of(shard)),
        )
        handle = self._handle_of(publication)
        self.on_published(handle, publication)
        return pb.PublishResponse(publication=publication.to_wire(), handle=handle)

    @unary_method
    async def RenewPublication(
        self,
        request: pb.RenewPublicationRequest,
        context: aio.ServicerContext[pb.RenewPublicationRequest, pb.RenewPublicationResponse],
    ) -> pb.RenewPublicationResponse:
        publication = self._publications.get(id_of("publications", request.name))
        await self._publications.renew(publication, checked_seconds("ttl", request.ttl, self._limits.ttl_s))
        return pb.RenewPublicationResponse(publication=publication.to_wire())

    @unary_method
    async def ReleasePublication(
        self,
        request: pb.ReleasePublicationRequest,
        context: aio.ServicerContext[pb.ReleasePublicationRequest, pb.ReleasePublicationResponse],
    ) -> pb.ReleasePublicationResponse:
        publication = self._publications.get(id_of("publications", request.name))
        await self._publications.release(publication)
        return pb.ReleasePublicationResponse(publication=publication.to_wire())

    @unary_method
    async def ListHeldPublications(
        self,
        request: pb.ListHeldPublicationsRequest,
        context: aio.ServicerContext[pb.ListHeldPublicationsRequest, pb.ListHeldPublicationsResponse],
    ) -> pb.ListHeldPublicationsResponse:
        live = [p for p in self._publications.newest_first() if p.life.state is State.LIVE]
        chosen, token = page(live, request.page_size, request.page_token, lambda publication: publication.id)
        blocks = 0
        for count, publication in enumerate(chosen, start=1):
            blocks += publication.block_count
            if blocks > HELD_BLOCKS_MAX and count < len(chosen):
                chosen, token = chosen[:count], publication.id
                break
        held = [
            pb.HeldPublication(
                publication=publication.to_wire(),
                request_id=publication.request_id,
                handle=self._handle_of(publication),
                blocks=publication.blocks.values(),
            )
            for publication in chosen
        ]
        return pb.ListHeldPublicationsResponse(publications=held, next_page_token=token)

    @unary_method
    async def Heartbeat(
        self, request: pb.HeartbeatRequest, context: aio.ServicerContext[pb.HeartbeatRequest, pb.HeartbeatResponse]
    ) -> pb.HeartbeatResponse:
        check_id("engine_id", request.engine_id)
        self._worker.heard_of_engine()
        return pb.HeartbeatResponse()

    @stream_method
    async def WatchEngine(
        self,
        request: pb.WatchEngineRequest,
        context: aio.ServicerContext[pb.WatchEngineRequest, pb.WatchEngineResponse],
    ) -> AsyncIterator[pb.WatchEngineResponse]:
        check_id("engine_id", request.engine_id)
        if len(self._watchers) >= self._limits.watchers:
            raise ResourceExhausted.of_bound("limits.watchers", self._limits.watchers, "so many engines watch")
        events: asyncio.Queue[pb.WatchEngineResponse | None] = asyncio.Queue(ENGINE_EVENTS_MAX)
        self._watchers.add(events)
        try:
            yield pb.WatchEngineResponse()
            for event in self._standing():
                yield event
            while (told := await events.get()) is not None:
                yield told
            raise ResourceExhausted(f"the engine reads too slowly: {ENGINE_EVENTS_MAX} events were waiting")
        finally:
            self._watchers.discard(events)

    # The generated base class speaks of the generator style; this method reads and writes through its context.
    async def Pull(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[pb.PullRequest],
        context: aio.ServicerContext[pb.PullRequest, pb.PullResponse],
    ) -> None:
        if self._pull_session_count >= self._limits.watchers:
            limit = self._limits.watchers
            await abort(context, ResourceExhausted.of_bound("limits.watchers", limit, "so many engines pull"))
        life = str(dict(context.invocation_metadata() or ()).get(LIFE_KEY, ""))
        self._pull_session_count += 1
        self._lives.connected(life)
        session = self._pull_session(life)
        try:
            stream = StreamServer(pb.PullRequest, session.handle, session.outgoing, message_of)
            await stream.serve(request_iterator, context, self._lanes, first=pb.PullResponse())
        finally:
            session.close()
            self._lives.disconnected(life)
            self._pull_session_count -= 1

    def publication_ended(self, publication: Publication) -> None:
        """Tell the engine that its blocks are its own again."""
        self._tell(pb.WatchEngineResponse(publication_ended=publication.to_wire()))

    def pool_changed(self, link: RankLink) -> None:
        """Tell the engine that a pool is gone, or is there again."""
        self._tell(_pool_event(link))

    def registered(self) -> None:
        """Tell the engine which life of its worker the cluster knows."""
        self._tell(self._registered_event())

    def draining_changed(self) -> None:
        """Tell the engine that the worker takes no new work, or takes work again."""
        self._tell(self._drain_event())

    def _standing(self) -> list[pb.WatchEngineResponse]:
        """What the engine may not know of: what has happened between its OpenEngine and its watch."""
        events = [_pool_event(link) for link in self._worker.links]
        if self._worker.identity.incarnation:
            events.append(self._registered_event())
        if self._worker.draining:
            events.append(self._drain_event())
        return events

    def _registered_event(self) -> pb.WatchEngineResponse:
        incarnation = self._worker.identity.incarnation
        return pb.WatchEngineResponse(worker_registered=pb.WorkerRegistered(incarnation=incarnation))

    def _drain_event(self) -> pb.WatchEngineResponse:
        event = pb.WorkerDraining(draining=self._worker.draining)
        if self._worker.drain_deadline is not None:
            event.time_left.CopyFrom(duration(max(self._worker.drain_deadline - time.monotonic(), 0.0)))
        return pb.WatchEngineResponse(worker_draining=event)

    def _handle_of(self, publication: Publication) -> bytes:
        identity = self._worker.identity
        return make_handle(
            self._worker.name, identity.incarnation, publication.id, publication.token_count, identity.handle_key
        )

    def _tell(self, event: pb.WatchEngineResponse) -> None:
        for events in self._watchers:
            if events.full():
                # The stream is ended, not the event dropped: the engine comes back and asks what it missed.
                events.get_nowait()
                events.put_nowait(None)
            else:
                events.put_nowait(event)


def _pool_event(link: RankLink) -> pb.WatchEngineResponse:
    if link.gone:
        return pb.WatchEngineResponse(pool_lost=pb.PoolLost(rank=link.rank))
    return pb.WatchEngineResponse(pool_restored=rank_pool(link))


def rank_pool(link: RankLink) -> pb.RankPool:
    """Where the engine attaches a rank's pool."""
    description = link.description
    if description is None:
        return pb.RankPool(rank=link.rank)
    return pb.RankPool(
        rank=link.rank,
        device=description.access.device,
        pool_bytes=description.access.pool_bytes,
        pool_socket=description.pool_socket,
        boot_id=description.access.boot_id,
    )
