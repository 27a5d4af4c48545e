"""Publications of one engine: which are live, and which have ended, however the news of it came."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from kvferry.core.errors import DeadlineExceeded, NotReady
from kvferry.publication.v1 import publication_pb2 as pb
from kvferry.sdk.calls import Caller
from kvferry.sdk.convert import publication_of
from kvferry.sdk.results import Publication, PublicationState

if TYPE_CHECKING:
    from kvferry.publication.v1.publication_pb2_grpc import PublicationServiceAsyncStub

ENDED_KEPT_MAX = 4_096
"""Ended publications that are remembered, so that news of them is told once."""
REPAIR_CALL_S = 2.0


def _new_future() -> "asyncio.Future[Publication | None]":
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True)
class _Tracked:
    publication: Publication
    expires_at: float
    """On the event loop's clock: no lease of it can last longer."""
    ended: asyncio.Future[Publication | None] = field(default_factory=_new_future)
    expiry: asyncio.TimerHandle | None = None


class PublicationTable:
    """Every publication's end is told to ``on_ended`` exactly once."""

    def __init__(
        self, stub: "PublicationServiceAsyncStub", call: Caller, on_ended: Callable[[Publication], None]
    ) -> None:
        self._stub = stub
        self._call = call
        self._on_ended = on_ended
        self._live: dict[str, _Tracked] = {}
        self._recent: OrderedDict[str, Publication] = OrderedDict()

    def learn(self, publication: Publication) -> None:
        """Take in a state of a publication, from whatever source."""
        if publication.state.is_ended:
            self._end(publication)
            return
        if publication.name in self._recent:
            return
        expires_at = asyncio.get_running_loop().time() + publication.time_left_s
        tracked = self._live.get(publication.name)
        if tracked is None:
            self._live[publication.name] = _Tracked(publication, expires_at)
        else:
            tracked.publication, tracked.expires_at = publication, expires_at

    def ended(self, name: str) -> Publication | None:
        """The publication, if it has ended lately."""
        return self._recent.get(name)

    async def wait(self, name: str, timeout_s: float | None, call_timeout_s: float) -> Publication:
        """The publication once it has ended.

        Raises:
            DeadlineExceeded: it had not ended after ``timeout_s``.
            KvferryError: control does not know it, or cannot be reached; the client was closed.
        """
        if name not in self._recent and name not in self._live:
            request = pb.GetPublicationRequest(name=name)
            response = await self._call(self._stub.GetPublication, request, call_timeout_s)
            self.learn(publication_of(response.publication))
        if (recent := self._recent.get(name)) is not None:
            return recent
        try:
            async with asyncio.timeout(timeout_s):
                ended = await asyncio.shield(self._live[name].ended)
        except TimeoutError:
            raise DeadlineExceeded(f"{name} had not ended after {timeout_s} s", metadata={"name": name}) from None
        if ended is None:
            raise NotReady("the client was closed")
        return ended

    async def repair(self) -> None:
        """Ask for every live publication, after the stream was interrupted.

        Raises:
            grpc.aio.AioRpcError: the connection broke again.
        """
        for name, tracked in list(self._live.items()):
            try:
                request = pb.GetPublicationRequest(name=name)
                response = await self._stub.GetPublication(request, timeout=REPAIR_CALL_S)
            except aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                self._end_at_expiry(tracked)
            else:
                self.learn(publication_of(response.publication))

    def close(self) -> None:
        """Forget everything; who waits is told."""
        for tracked in self._live.values():
            if tracked.expiry is not None:
                tracked.expiry.cancel()
            if not tracked.ended.done():
                tracked.ended.set_result(None)
        self._live.clear()

    def _end_at_expiry(self, tracked: _Tracked) -> None:
        """Control has forgotten it. A data plane may still hold its lease, but not for longer than agreed."""
        if tracked.expiry is None:
            ended = replace(tracked.publication, state=PublicationState.EXPIRED, time_left_s=0.0)
            tracked.expiry = asyncio.get_running_loop().call_at(tracked.expires_at, self._end, ended)

    def _end(self, publication: Publication) -> None:
        if publication.name in self._recent:
            return
        tracked = self._live.pop(publication.name, None)
        self._recent[publication.name] = publication
        if len(self._recent) > ENDED_KEPT_MAX:
            self._recent.popitem(last=False)
        if tracked is not None:
            if tracked.expiry is not None:
                tracked.expiry.cancel()
            if not tracked.ended.done():
                tracked.ended.set_result(publication)
        self._on_ended(publication)
