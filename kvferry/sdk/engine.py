"""The engine's client: attaches pools, publishes finished blocks, pulls remote ones."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from grpc import aio

from kvferry.core.errors import KvferryError, NotFound, NotReady
from kvferry.core.layouts import WorkerLayout, validate_layout
from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.engine.v1.engine_pb2_grpc import EngineServiceStub
from kvferry.publication.v1.publication_pb2_grpc import PublicationServiceStub
from kvferry.rpc.engine_life import new_life
from kvferry.rpc.layouts import layout_to_wire
from kvferry.rpc.options import channel_options
from kvferry.rpc.times import duration
from kvferry.sdk.arguments import (
    COUNT_MAX,
    TOKENS_MAX,
    Blocks,
    block_counts,
    checked_blocks,
    checked_id,
    checked_int,
    checked_name,
    checked_path,
    checked_seconds,
    checked_size,
)
from kvferry.sdk.calls import Caller
from kvferry.sdk.convert import publication_of
from kvferry.sdk.engine_state import EngineState
from kvferry.sdk.events import EngineEvent, EventStream, PublicationStream
from kvferry.sdk.held import held_publications
from kvferry.sdk.link import EngineLink
from kvferry.sdk.log import sdk_log
from kvferry.sdk.pools import AttachedPool, PoolInfo
from kvferry.sdk.pull_request import pull_request
from kvferry.sdk.pull_stream import PullStream
from kvferry.sdk.pulls import Pull
from kvferry.sdk.results import HeldPublication, Publication, TransferResult
from kvferry.sdk.timeouts import set_timeouts

if TYPE_CHECKING:
    from kvferry.engine.v1.engine_pb2_grpc import EngineServiceAsyncStub

CONNECT_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 10.0


class EngineClient:
    """One engine at its worker's control. Use it as ``async with EngineClient.connect(...) as engine``.

    It keeps the engine declared and alive over restarts of control. Everything runs on the event loop that entered it.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str],
        engine_id: str,
        layout: WorkerLayout | None,
        connect_timeout_s: float,
        call_timeout_s: float,
        on_event: Callable[[EngineEvent], None] | None,
    ) -> None:
        self._path = checked_path(socket_path)
        self._request = pb.OpenEngineRequest(engine_id=checked_id("engine_id", engine_id), life=new_life())
        if layout is not None:
            validate_layout(layout)
            self._request.layout.CopyFrom(layout_to_wire(layout))
            checked_size("layout", self._request)
        self.layout = layout
        self._block_counts = block_counts(layout)
        self._connect_timeout_s = checked_seconds("connect_timeout_s", connect_timeout_s)
        self._call_timeout_s = checked_seconds("call_timeout_s", call_timeout_s)
        self._on_event = on_event
        self._tasks = asyncio.TaskGroup()
        self._state: EngineState | None = None
        self._log = sdk_log(engine=engine_id)

    @classmethod
    def connect(
        cls,
        socket_path: str | os.PathLike[str],
        engine_id: str,
        layout: WorkerLayout | None = None,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        call_timeout_s: float = CALL_TIMEOUT_S,
        on_event: Callable[[EngineEvent], None] | None = None,
    ) -> Self:
        """A client to enter with ``async with``, which declares the engine. ``on_event`` is called on its event loop.

        ``engine_id`` is the same in every life of the same engine; what lives that are gone were pulling has ended once
        one with ``layout`` is entered. Without it the client only looks: it is no sign of life. ``connect_timeout_s``
        bounds the wait for a control that is not up yet, ``call_timeout_s`` calls that have no timeout of their own.

        Raises:
            InvalidArgument, ConfigInvalid: an argument is wrong; names it and its value.
            LayoutInvalid: the layout contradicts itself. On entering: it does not fit the worker's pools.
            NotReady: on entering: control was not there in time.
        """
        return cls(socket_path, engine_id, layout, connect_timeout_s, call_timeout_s, on_event)

    async def __aenter__(self) -> Self:
        if self._state is not None:
            raise NotReady("a client is entered once; connect again")
        self._channel = aio.insecure_channel(f"unix:{quote(self._path)}", options=channel_options())
        self._engines: EngineServiceAsyncStub = EngineServiceStub(self._channel)
        self._call = Caller(self._path, self._reopen)
        pulls = PullStream(self._path, self._reopen, self._tasks)
        await self._tasks.__aenter__()
        self._state = EngineState(
            self.layout,
            pulls,
            PublicationServiceStub(self._channel),
            self._call,
            self._tasks,
            self._on_event,
        )
        self._link = EngineLink(self._engines, pulls, self._request, self._path, self._state)
        self._running = self._tasks.create_task(self._link.run())
        try:
            await self._link.wait_first(self._connect_timeout_s)
        except BaseException:
            await self._close(self._state)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close(self._open_state())

    @property
    def worker(self) -> str:
        """``workers/{worker}`` of this engine."""
        return self._open_state().worker

    @property
    def incarnation(self) -> int:
        """Of the worker's present life, as etcd confirmed it last; 0 while it has not."""
        return self._open_state().incarnation

    @property
    def pools(self) -> tuple[PoolInfo, ...]:
        """Pools that can be attached, in order of their ranks."""
        return self._open_state().pools.known

    async def attach(self, rank: int = 0) -> AttachedPool:
        """The rank's pool in this process; the same object until it is closed or lost.

        Raises:
            InvalidArgument: there is no such rank.
            DataPlaneLost: its data plane is gone, for the time being.
            TransportFailed, PermissionDenied, ConfigInvalid: it cannot be mapped here.
        """
        return await self._open_state().pools.attach(rank)

    async def publish(
        self,
        blocks: Blocks,
        token_count: int,
        ttl_s: float,
        expected_readers: int = 1,
        request_id: str | None = None,
        data_parallel_rank: int = 0,
    ) -> Publication:
        """Pin blocks on every rank for readers; ``handle`` of the result is for the decode engine.

        ``data_parallel_rank`` is the one that holds the request; its ranks alone are asked.

        Until the publication has ended the blocks must keep their content. It ends after ``ttl_s`` seconds, when
        ``expected_readers`` transfers have read it (0: not by reading), or by :meth:`release`. The same ``request_id``
        with the same arguments gives the same publication.

        Raises:
            InvalidArgument, BlockError, MessageTooLarge, RequestIdReused: the call is wrong.
            Draining: the worker goes out of service.
            NotReady, DataPlaneLost, ResourceExhausted, DeadlineExceeded: not now. With ``metadata["outcome"] ==
                "unknown"`` the blocks may be pinned for ``ttl_s``: repeat with the same ``request_id`` to find out.
        """
        state = self._open_state()
        request = pb.PublishRequest(
            request_id=checked_id("request_id", request_id),
            blocks=checked_blocks("blocks", blocks, self._block_counts),
            token_count=checked_int("token_count", token_count, 1, TOKENS_MAX),
            ttl=duration(checked_seconds("ttl_s", ttl_s)),
            expected_reader_count=checked_int("expected_readers", expected_readers, 0, COUNT_MAX),
            data_parallel_rank=checked_int("data_parallel_rank", data_parallel_rank, 0, COUNT_MAX),
            mapped_pools=state.pools.mapped(),
        )
        checked_size("blocks", request)
        try:
            response = await self._call(self._engines.Publish, request, self._call_timeout_s)
        except asyncio.CancelledError:
            await asyncio.shield(self._tasks.create_task(self._withdraw(request)))
            raise
        publication = publication_of(response.publication, response.handle)
        state.publications.learn(publication)
        # The news of its end may have overtaken the answer.
        ended = state.publications.ended(publication.name)
        return publication if ended is None else replace(ended, handle=publication.handle)

    async def renew(self, publication: Publication | str, ttl_s: float) -> Publication:
        """Make the leases last ``ttl_s`` seconds from now.

        Raises:
            LeaseEnded: it has ended.
            NotFound: there is none of that name, or it ended long ago.
        """
        state = self._open_state()
        request = pb.RenewPublicationRequest(name=_name_of(publication), ttl=duration(checked_seconds("ttl_s", ttl_s)))
        response = await self._call(self._engines.RenewPublication, request, self._call_timeout_s)
        handle = publication.handle if isinstance(publication, Publication) else b""
        renewed = publication_of(response.publication, handle)
        state.publications.learn(renewed)
        return renewed

    async def release(self, publication: Publication | str) -> Publication:
        """End a publication. When this returns, no reader can use the blocks any more: they are the engine's.

        Raises:
            NotFound: there is none of that name.
            DataPlaneLost, NotReady, DeadlineExceeded: not confirmed; the blocks stay pinned until it ends.
        """
        state = self._open_state()
        name = _name_of(publication)
        request = pb.ReleasePublicationRequest(name=name)
        try:
            response = await self._call(self._engines.ReleasePublication, request, self._call_timeout_s)
        except NotFound:
            ended = state.publications.ended(name)
            if ended is None:
                raise
            return ended
        released = publication_of(response.publication)
        state.publications.learn(released)
        return released

    async def wait_ended(self, publication: Publication | str, timeout_s: float | None = None) -> Publication:
        """The publication once it has ended, however it did: the blocks are the engine's again.

        Raises:
            DeadlineExceeded: it had not ended after ``timeout_s`` seconds.
            NotFound: there is none of that name, or it ended long ago.
        """
        if timeout_s is not None:
            checked_seconds("timeout_s", timeout_s)
        table = self._open_state().publications
        return await table.wait(_name_of(publication), timeout_s, self._call_timeout_s)

    async def held_publications(self) -> list[HeldPublication]:
        """Live publications of this worker, newest first: after a restart, what an earlier life of the engine made."""
        self._open_state()
        return await held_publications(self._engines, self._call, self._call_timeout_s)

    def publication_ended(self) -> PublicationStream:
        """Every publication that ends from now on, once each, also those ended by :meth:`release`."""
        return PublicationStream(self.events())

    def events(self) -> EventStream:
        """Ended publications, lost and restored pools, from now on."""
        return self._open_state().hub.stream()

    async def pull(  # noqa: PLR0913 - what a pull can be told, by name
        self,
        handle: bytes,
        blocks: Blocks,
        timeout_s: float | None = None,
        request_id: str | None = None,
        priority: int = 0,
        *,
        first_token: int = 0,
        data_parallel_rank: int = 0,
        resumable: bool = False,
        queue_timeout_s: float | None = None,
        verify: str | None = None,
    ) -> TransferResult:
        """Read a publication into ``blocks``, as many as its tokens take here; returns when all is there, verified.

        Tokens before ``first_token`` are at the destination already, in the first of its blocks, and are not read.
        ``data_parallel_rank`` is the one of this worker that shall hold the request. ``verify`` has checksums of what
        arrived compared with those that the source made when it published: ``off``, ``full``, ``sampled:N`` for one
        block in N, None as the worker is configured; the result's ``compared_bytes`` says of how much.

        ``handle`` may be several joined to one (``join_handles``): if a source fails, the next goes on where the
        verified tokens end. ``resumable`` has the tokens verified in spans also where there is one source, so that
        after a failure ``transfer.verified_tokens`` says where a pull from elsewhere into the same blocks may begin.

        With ``queue_timeout_s`` the pull may wait so long to be served, and ``timeout_s`` begins then; without,
        ``timeout_s`` (None: as the worker is configured) bounds everything. Ends by their sum + 1 second whatever dies.
        If the calling task is cancelled, the transfer is cancelled and acknowledged before the CancelledError goes on.
        ``destination_settled(error)`` tells of whatever was raised whether the blocks may be used again.

        Raises:
            InvalidArgument, BlockError, HandleMalformed, MessageTooLarge: the call is wrong; nothing was sent.
            PullFailed: it did not succeed; also of the class of its reason, for example Fenced, PeerError,
                QueueTimeout, DeadlineExceeded. ``transfer`` and ``destination_settled`` tell what is known.
        """
        state = self._open_state()
        request = pull_request(
            handle,
            checked_blocks("blocks", blocks, self._block_counts),
            request_id,
            priority,
            first_token=first_token,
            data_parallel_rank=data_parallel_rank,
            resumable=resumable,
            verify=verify,
        )
        request.mapped_pools.extend(state.pools.mapped())
        total_s = set_timeouts(request, state.pull_timeout_s if timeout_s is None else timeout_s, queue_timeout_s)
        return await state.pulls.run(request, total_s)

    async def start_pull(  # noqa: PLR0913 - as pull
        self,
        handle: bytes,
        blocks: Blocks,
        timeout_s: float | None = None,
        request_id: str | None = None,
        priority: int = 0,
        *,
        first_token: int = 0,
        data_parallel_rank: int = 0,
        resumable: bool = False,
        queue_timeout_s: float | None = None,
        verify: str | None = None,
    ) -> Pull:
        """Like :meth:`pull`, but returns once control has made the transfer.

        Raises:
            As :meth:`pull`, where control refuses the transfer.
        """
        state = self._open_state()
        request = pull_request(
            handle,
            checked_blocks("blocks", blocks, self._block_counts),
            request_id,
            priority,
            first_token=first_token,
            data_parallel_rank=data_parallel_rank,
            resumable=resumable,
            verify=verify,
        )
        request.mapped_pools.extend(state.pools.mapped())
        total_s = set_timeouts(request, state.pull_timeout_s if timeout_s is None else timeout_s, queue_timeout_s)
        return await state.pulls.start(request, total_s)

    async def wait_settled(self, error: BaseException, timeout_s: float) -> TransferResult | None:
        """After a pull that raised ``error``: return once no byte can still arrive in its blocks, at once where
        ``destination_settled(error)``. The blocks may be used again then. None if no transfer was made.

        Raises:
            DeadlineExceeded: its data planes have not confirmed that within ``timeout_s``.
            KvferryError: control cannot be reached, or does not know the transfer; the blocks must stay out of use.
        """
        checked_seconds("timeout_s", timeout_s)
        return await self._open_state().pulls.wait_settled_after(error, timeout_s)

    def _open_state(self) -> EngineState:
        if self._state is None or self._state.closed:
            raise NotReady("the client is not open")
        return self._state

    async def _reopen(self, timeout_s: float) -> None:
        await self._link.restore(timeout_s)

    async def _withdraw(self, request: pb.PublishRequest) -> None:
        """Nobody will ever have the handle: learn the publication's name by the same request and end it."""
        try:
            made = await self._call(self._engines.Publish, request, self._call_timeout_s)
            release = pb.ReleasePublicationRequest(name=made.publication.name)
            await self._call(self._engines.ReleasePublication, release, self._call_timeout_s)
        except KvferryError as error:
            self._log.warning(
                "a cancelled publication was not released; its blocks stay pinned until it expires",
                request_id=request.request_id,
                error=str(error),
            )

    async def _close(self, state: EngineState) -> None:
        try:
            await state.close()
        finally:
            self._link.stop()
            self._running.cancel()
            # The body's own error goes on by itself; the group only reports defects of the client.
            await self._tasks.__aexit__(None, None, None)
            await self._channel.close()


def _name_of(publication: Publication | str) -> str:
    name = publication.name if isinstance(publication, Publication) else publication
    return checked_name("publications", name)
