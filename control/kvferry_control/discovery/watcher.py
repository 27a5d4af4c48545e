"""Keeps the snapshot of all workers up to date, and goes on serving the last one while etcd is away."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from kvferry_control.discovery.snapshot import (
    Changes,
    Decode,
    Removed,
    Snapshot,
    Stored,
    apply,
    diff,
    resync,
)
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.errors import EtcdError
from kvferry_control.etcd.model import Event, KeyValue, Listing, PutEvent
from kvferry_control.etcd.watch import (
    WatchBroken,
    WatchConnected,
    WatchEvents,
    WatchItem,
    WatchResync,
    watch_prefix,
)

RecordT = TypeVar("RecordT")

SUBSCRIPTIONS_MAX = 1024

_BACKOFF_S_FIRST = 0.05
_BACKOFF_S_MAX = 1.0


class TooManySubscriptions(Exception):
    """More readers want to follow the snapshot than the watcher allows."""


@dataclass(frozen=True, slots=True)
class WatcherStatus:
    """How fresh the snapshot is.

    ``connected`` while changes arrive; ``age_s`` since etcd last confirmed the snapshot, None before the
    first time.
    """

    connected: bool
    age_s: float | None
    error: str | None


class Subscription(Generic[RecordT]):
    """One reader. It learns every difference, but not every step: what it was too slow for is merged."""

    def __init__(self, watcher: "WorkerWatcher[RecordT]") -> None:
        self._watcher = watcher
        self._seen: Snapshot[RecordT] = Snapshot(watcher.prefix)

    async def next(self) -> tuple[Snapshot[RecordT], Changes[RecordT]]:
        """Wait until something differs from what this reader saw last (at first: from nothing at all)."""
        while not (changes := diff(self._seen, self._watcher.snapshot)):
            await self._watcher.changed_after(self._watcher.snapshot)
        self._seen = self._watcher.snapshot
        return self._seen, changes

    async def __aiter__(self) -> AsyncGenerator[tuple[Snapshot[RecordT], Changes[RecordT]], None]:
        while True:
            yield await self.next()


class WorkerWatcher(Generic[RecordT]):
    """Lists the workers under the client's prefix, then watches them; :meth:`run` does it in the caller's task.

    After every break of the watch the workers are listed again: a store that lost its data can look as if it
    went on, and only a listing tells. ``on_status`` is called when the connection comes or goes; it must not
    raise.
    """

    def __init__(
        self,
        client: EtcdClient,
        decode: Decode[RecordT],
        *,
        on_status: Callable[[WatcherStatus], None] | None = None,
        subscriptions_max: int = SUBSCRIPTIONS_MAX,
    ) -> None:
        self.prefix = f"{client.options.prefix}/workers/"
        self.snapshot: Snapshot[RecordT] = Snapshot(self.prefix)
        self._client = client
        self._decode = decode
        self._on_status = on_status
        self._subscriptions_max = subscriptions_max
        self._subscription_count = 0
        self._connected = False
        self._error: str | None = None
        self._confirmed_at: float | None = None
        self._moved = asyncio.Condition()
        self._log = structlog.get_logger("kvferry.control.discovery").bind(prefix=self.prefix)

    @property
    def status(self) -> WatcherStatus:
        """How fresh the snapshot is."""
        age_s = None
        if self._confirmed_at is not None:
            age_s = asyncio.get_running_loop().time() - self._confirmed_at
        return WatcherStatus(self._connected, age_s, self._error)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription[RecordT]]:
        """Follow the snapshot. Raises :class:`TooManySubscriptions`."""
        if self._subscription_count >= self._subscriptions_max:
            raise TooManySubscriptions(f"{self._subscription_count} readers, at most {self._subscriptions_max}")
        self._subscription_count += 1
        try:
            yield Subscription(self)
        finally:
            self._subscription_count -= 1

    async def wait_listed(self) -> Snapshot[RecordT]:
        """Wait for the first complete listing; waits for as long as etcd is away."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._confirmed_at is not None)
        return self.snapshot

    async def wait_for(self, reached: Callable[[Snapshot[RecordT]], bool]) -> Snapshot[RecordT]:
        """Wait until ``reached`` holds for the snapshot; bound it with ``asyncio.timeout``."""
        async with self._moved:
            await self._moved.wait_for(lambda: reached(self.snapshot))
            return self.snapshot

    async def changed_after(self, seen: Snapshot[RecordT]) -> None:
        """Wait until the snapshot is another one than ``seen``."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.snapshot is not seen)

    async def run(self) -> None:
        """List and watch until cancelled."""
        try:
            while True:
                listing = await self._list()
                await self._adopt(listing)
                await self._watch(listing)
        finally:
            self._set_connected(False, "stopped")

    async def _list(self) -> Listing:
        timeout_s = self._client.options.attempt_timeout_s
        backoff_s = _BACKOFF_S_FIRST
        while True:
            try:
                # One attempt only: the status is to tell at once, and the next attempt asks the next endpoint.
                return await self._client.get_prefix(self.prefix, timeout_s=timeout_s)
            except EtcdError as error:
                self._set_connected(False, str(error))
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_S_MAX)

    async def _watch(self, listing: Listing) -> None:
        """Follow changes until the store cannot tell them any more."""
        async with aclosing(
            watch_prefix(self._client, self.prefix, listing.state.revision + 1, listing.state)
        ) as items:
            async for item in items:
                await self._take(item)

    async def _take(self, item: WatchItem) -> None:
        match item:
            case WatchResync(revision, reason):
                self._log.warning("workers_listed_again", last_revision=revision, reason=reason)
            case WatchBroken(error):
                self._set_connected(False, str(error))
            case WatchConnected(resumed=resumed):
                if resumed:
                    await self._adopt(await self._list())
                self._set_connected(True, None)
            case WatchEvents(events):
                stored = [_from_event(event) for event in events]
                await self._replace(apply(self.snapshot, stored, self._decode))
            case _:
                self._confirmed_at = asyncio.get_running_loop().time()

    async def _adopt(self, listing: Listing) -> None:
        stored = [_stored(kv) for kv in listing.items]
        await self._replace(resync(self.snapshot, stored, listing.state.revision, self._decode))

    async def _replace(self, after: Snapshot[RecordT]) -> None:
        changes = diff(self.snapshot, after)
        for undecodable in changes.undecodable:
            self._log.warning("worker_undecodable", key=undecodable.stored.key, reason=undecodable.reason)
        async with self._moved:
            self.snapshot = after
            self._confirmed_at = asyncio.get_running_loop().time()
            self._moved.notify_all()

    def _set_connected(self, connected: bool, error: str | None) -> None:
        changed = connected != self._connected
        self._connected, self._error = connected, error
        if connected:
            self._confirmed_at = asyncio.get_running_loop().time()
        if not changed:
            return
        log = self._log.info if connected else self._log.warning
        log("etcd_watch", connected=connected, error=error, worker_count=len(self.snapshot.workers))
        if self._on_status is not None:
            self._on_status(self.status)


def _stored(kv: KeyValue) -> Stored:
    return Stored(kv.key, kv.value, kv.create_revision, kv.mod_revision)


def _from_event(event: Event) -> Stored | Removed:
    if isinstance(event, PutEvent):
        return _stored(event.kv)
    return Removed(event.key, event.mod_revision)
