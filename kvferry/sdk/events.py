"""What an engine is told: typed events, and bounded buffers to read them from."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Self
from weakref import WeakSet

from kvferry.core.errors import ResourceExhausted
from kvferry.sdk.records import Record
from kvferry.sdk.results import Publication

BUFFER_EVENTS_MAX = 4_096
"""Events that a reader may lag behind."""


@dataclass(frozen=True, slots=True)
class PublicationEnded(Record):
    """A publication ended: its blocks are the engine's again."""

    publication: Publication


@dataclass(frozen=True, slots=True)
class PoolLost(Record):
    """A rank's data plane was lost; its attached pool raises DataPlaneLost from now on."""

    rank: int


@dataclass(frozen=True, slots=True)
class PoolRestored(Record):
    """A rank's data plane is back with a new, empty pool: attach it again."""

    rank: int


@dataclass(frozen=True, slots=True)
class WorkerDraining(Record):
    """The worker takes no new publications and pulls (``draining``), or takes them again; those that run go on.

    An engine releases what it publishes without an expected reader, and gets ready to end.
    """

    draining: bool
    time_left_s: float | None
    """After this, what is left is ended; None where there is no such bound."""


EngineEvent = PublicationEnded | PoolLost | PoolRestored | WorkerDraining


class EventStream:
    """An asynchronous iterator over the events since its creation; it ends when the client closes.

    For one reader. One that lags more than ``BUFFER_EVENTS_MAX`` events behind loses the oldest and is told so by a
    ResourceExhausted, after which it may read on.
    """

    def __init__(self) -> None:
        self._events: deque[EngineEvent] = deque()
        self._missed = 0
        self._closed = False
        self._wake = asyncio.Event()

    def push(self, event: EngineEvent) -> None:
        """Append an event."""
        if len(self._events) >= BUFFER_EVENTS_MAX:
            self._events.popleft()
            self._missed += 1
        self._events.append(event)
        self._wake.set()

    def close(self) -> None:
        """End the iteration once what is buffered has been read."""
        self._closed = True
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EngineEvent:
        if self._missed:
            missed, self._missed = self._missed, 0
            raise ResourceExhausted(
                f"{missed} events were lost: the reader lags more than {BUFFER_EVENTS_MAX} behind",
                metadata={"missed": str(missed)},
            )
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()


class PublicationStream:
    """The ended publications among the events of a stream."""

    def __init__(self, events: EventStream) -> None:
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Publication:
        async for event in self._events:
            if isinstance(event, PublicationEnded):
                return event.publication
        raise StopAsyncIteration


class EventHub:
    """Hands every event to every stream that somebody still holds."""

    def __init__(self) -> None:
        self._streams: WeakSet[EventStream] = WeakSet()
        self._closed = False

    def stream(self) -> EventStream:
        """A new stream, from now on."""
        stream = EventStream()
        if self._closed:
            stream.close()
        self._streams.add(stream)
        return stream

    def push(self, event: EngineEvent) -> None:
        """Tell everybody."""
        for stream in list(self._streams):
            stream.push(event)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()
