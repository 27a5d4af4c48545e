"""A watch on a prefix that outlives connections, members and compactions.

It starts at a revision, remembers how far it came, and goes on from there at the next endpoint after any
break, so that no change is lost or reported twice. When the store cannot go on from there (compaction, or a
store that lost its data) it ends with :class:`WatchResync`: the caller lists again and opens a new watch.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import grpc
import structlog

from kvferry_control.etcd import wire
from kvferry_control.etcd.client import EtcdClient, translated
from kvferry_control.etcd.endpoints import Endpoint
from kvferry_control.etcd.errors import EtcdAuthFailed, EtcdError, EtcdTlsFailed, EtcdUnavailable
from kvferry_control.etcd.model import Event, StoreState, WatchMessage, event_revision
from kvferry_control.etcd.translate import error_class, is_stale_token

_BACKOFF_S_FIRST = 0.05
_BACKOFF_S_MAX = 0.5


@dataclass(frozen=True, slots=True)
class WatchConnected:
    """A stream is open at ``endpoint``; ``resumed`` unless the first attempt to open one succeeded."""

    endpoint: str
    resumed: bool


@dataclass(frozen=True, slots=True)
class WatchEvents:
    """Changes in the order of their revisions; all changes up to ``revision`` have been reported."""

    events: tuple[Event, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class WatchAlive:
    """The member that serves the watch has answered and nothing has changed."""


@dataclass(frozen=True, slots=True)
class WatchBroken:
    """The stream ended; the watch goes on by itself as soon as an endpoint answers."""

    error: EtcdError


@dataclass(frozen=True, slots=True)
class WatchResync:
    """The last item: what happened since ``revision`` cannot be told, list again."""

    revision: int
    reason: str


WatchItem = WatchConnected | WatchEvents | WatchAlive | WatchBroken | WatchResync


async def watch_prefix(
    client: EtcdClient, prefix: str, start_revision: int, listed: StoreState | None = None
) -> AsyncGenerator[WatchItem, None]:
    """Report every change under ``prefix`` from ``start_revision`` (at least 1) on.

    ``listed`` is the state of the listing that the watch continues; with it, a cluster that was replaced in
    between is noticed. Refused credentials end a stream like any other break (:class:`WatchBroken`) and are
    tried again.
    """
    watch = _Watch(client, prefix, start_revision, listed)
    backoff_s = _BACKOFF_S_FIRST
    while True:
        endpoint = client.endpoints.current
        try:
            async with aclosing(watch.stream(endpoint)) as items:
                async for item in items:
                    yield item
                    if isinstance(item, WatchResync):
                        return
                    backoff_s = _BACKOFF_S_FIRST
        except EtcdError as error:
            client.endpoints.move_on_from(endpoint)
            if isinstance(error, EtcdTlsFailed):
                await endpoint.reset()
            yield WatchBroken(error)
        await asyncio.sleep(backoff_s)
        backoff_s = min(2 * backoff_s, _BACKOFF_S_MAX)


class _Watch:
    """How far a watch came, over all of its streams."""

    def __init__(self, client: EtcdClient, prefix: str, start_revision: int, listed: StoreState | None) -> None:
        self._client = client
        self._prefix = prefix
        self._next_revision = start_revision
        self._cluster_id = listed.cluster_id if listed else None
        self._stream_count = 0
        self._partial: list[Event] = []
        self._log = structlog.get_logger("kvferry.control.etcd").bind(prefix=prefix)

    async def stream(self, endpoint: Endpoint) -> AsyncGenerator[WatchItem, None]:
        """One stream at one endpoint, until it breaks (raises :class:`EtcdError`) or needs a resync."""
        # A revision that was cut in half is reported again in full by the next stream.
        self._partial.clear()
        self._stream_count += 1
        metadata = await self._client.tokens.metadata(endpoint, self._client.options.attempt_timeout_s)
        call = endpoint.stream(wire.WATCH_PATH)(metadata=metadata)
        try:
            messages = _messages(call, endpoint, self._prefix, self._next_revision, self._client)
            async with aclosing(messages):
                async for message in messages:
                    item = self._read(message, endpoint)
                    yield item
                    if isinstance(item, WatchResync):
                        return
        except EtcdAuthFailed as error:
            # Older servers call a forgotten token a denied permission, so a watch that was refused always
            # fetches a new one; if that does not help, the next refusal comes after a pause.
            self._client.tokens.forget(metadata)
            self._log.warning("watch_refused", error=str(error), stale_token=is_stale_token(error))
            raise
        finally:
            call.cancel()

    def _read(self, message: WatchMessage, endpoint: Endpoint) -> WatchItem:
        if message.canceled:
            return self._ended(message, endpoint)
        if message.created:
            return self._created(message.state, endpoint)
        if not message.own:
            return WatchAlive()
        if not message.events:
            self._next_revision = max(self._next_revision, message.state.revision + 1)
            return WatchAlive()
        return self._changed(message)

    def _created(self, state: StoreState, endpoint: Endpoint) -> WatchItem:
        # A wiped store may keep its cluster id, which is derived from addresses, but not its revision. A
        # member that merely lags looks the same; listing again is right for both.
        last = self._next_revision - 1
        if self._cluster_id not in (None, state.cluster_id):
            return WatchResync(last, f"cluster id changed from {self._cluster_id:x} to {state.cluster_id:x}")
        if state.revision < last:
            return WatchResync(last, f"the store went back to revision {state.revision}")
        self._cluster_id = state.cluster_id
        return WatchConnected(endpoint.address, resumed=self._stream_count > 1)

    def _changed(self, message: WatchMessage) -> WatchItem:
        # Servers have been seen to repeat older revisions to a watch that starts ahead of a lagging member.
        events = [*self._partial, *(e for e in message.events if event_revision(e) >= self._next_revision)]
        self._partial.clear()
        if message.partial and events:
            # The last revision may go on in the next message: hold it back, so that a resume repeats all of
            # it.
            last = event_revision(events[-1])
            self._partial = [event for event in events if event_revision(event) == last]
            events = events[: len(events) - len(self._partial)]
        if not events:
            return WatchAlive()
        revision = event_revision(events[-1])
        self._next_revision = revision + 1
        return WatchEvents(tuple(events), revision)

    def _ended(self, message: WatchMessage, endpoint: Endpoint) -> WatchItem:
        if message.compact_revision > 0:
            return WatchResync(self._next_revision - 1, f"compacted up to revision {message.compact_revision}")
        reason = message.cancel_reason or "canceled without a reason"
        error = error_class(grpc.StatusCode.UNAVAILABLE, reason)
        raise error(f"watch canceled: {reason}", endpoint=endpoint.address, key=self._prefix)


_RawStream = grpc.aio.StreamStreamCall[bytes, bytes]


async def _messages(
    call: _RawStream, endpoint: Endpoint, prefix: str, start_revision: int, client: EtcdClient
) -> AsyncGenerator[WatchMessage, None]:
    """Open a watch and give its messages; ask for a sign of life in silence and raise when none comes.

    The reading task is never cancelled while the stream is wanted, because grpc cancels the call with it.
    """
    interval_s = client.options.watch_progress_interval_s
    attempt_s = client.options.attempt_timeout_s
    loop = asyncio.get_running_loop()
    await _send(call, wire.watch_create_request(prefix, start_revision), endpoint, prefix, attempt_s)
    created = False
    heard_at = loop.time()
    reading = asyncio.ensure_future(translated(call.read(), endpoint, prefix))
    try:
        while True:
            silence_s_max = 2 * interval_s + attempt_s if created else attempt_s
            done, _ = await asyncio.wait({reading}, timeout=min(interval_s, silence_s_max))
            if done:
                answer = reading.result()
                if not isinstance(answer, bytes):
                    raise EtcdUnavailable("the watch stream ended", endpoint=endpoint.address, key=prefix)
                message = wire.watch_message(answer)
                created = created or message.created
                yield message
                heard_at = loop.time()
                reading = asyncio.ensure_future(translated(call.read(), endpoint, prefix))
            elif loop.time() - heard_at >= silence_s_max:
                detail = f"nothing heard for {silence_s_max:g} s"
                raise EtcdUnavailable(detail, endpoint=endpoint.address, key=prefix)
            elif created:
                await _send(call, wire.watch_progress_request(), endpoint, prefix, attempt_s)
    finally:
        if not reading.done():
            reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _send(call: _RawStream, request: bytes, endpoint: Endpoint, prefix: str, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await translated(call.write(request), endpoint, prefix)
    except (TimeoutError, asyncio.InvalidStateError) as error:
        # InvalidStateError: the stream ended before, and its status is what the caller would have read.
        detail = "the watch stream does not take messages"
        raise EtcdUnavailable(detail, endpoint=endpoint.address, key=prefix) from error
