"""Events on their way to control, across its restarts."""

import asyncio
from collections import deque

from kvferry.core.errors import ResourceExhausted
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.rpc.lanes import Lane

SESSION_EVENTS_MAX = 1 << 16
BACKLOG_EVENTS_MAX = 1 << 15
EVENTS_AT_ONCE = 64
_DURABLE = ("read_finished", "lease_ended")


class SessionQueue:
    """Events of one session. Closed when a newer one takes over, or when control does not keep up."""

    def __init__(self) -> None:
        self._events: deque[pb.SessionResponse] = deque()
        self._changed = asyncio.Event()
        self._closed = False
        self._ending = False
        self._overflowed = False
        self._lane: Lane | None = None
        self._flushing = False

    def __len__(self) -> int:
        return len(self._events)

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""
        return self._closed

    def put(self, event: pb.SessionResponse) -> None:
        """Add an event; past the bound the session ends instead."""
        if len(self._events) >= SESSION_EVENTS_MAX:
            self._overflowed = True
        self._events.append(event)
        if self._lane is None or self._overflowed:
            self._changed.set()
        elif not self._flushing:
            # The first event goes at once; what else one turn of the loop has to say goes together, a turn later.
            self.flush()
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def go_by(self, lane: Lane) -> None:
        """Send everything by a lane from now on; :meth:`first` then waits for the end alone."""
        self._lane = lane
        self.flush()

    def flush(self) -> None:
        """Send by the lane what waits, as far as control keeps up."""
        self._flushing = False
        while self._events and self._lane is not None and self._lane.is_writable and not self._closed:
            batch = [self._events.popleft() for _ in range(min(len(self._events), EVENTS_AT_ONCE))]
            self._lane.send([event.SerializeToString() for event in batch])
        if self._ending:
            self._changed.set()

    def close(self) -> None:
        """End the session."""
        self._closed = True
        self._changed.set()

    def end(self) -> None:
        """End the session once what is in the queue has been sent."""
        self._ending = True
        self._changed.set()

    async def first(self) -> pb.SessionResponse | None:
        """The oldest event, still in the queue; None once closed, or ended and empty.

        Raises:
            ResourceExhausted: control did not fetch its events.
        """
        while (not self._events or self._lane is not None) and not self._is_over:
            self._changed.clear()
            await self._changed.wait()
        if self._overflowed:
            raise ResourceExhausted.of_field("session_events", len(self._events), "control does not fetch its events")
        return None if self._closed or not self._events else self._events[0]

    @property
    def _is_over(self) -> bool:
        return self._closed or self._overflowed or (self._ending and not self._events)

    def drop_first(self) -> None:
        """Take the oldest event out: it is on its way."""
        self._events.popleft()

    def durable_events(self) -> list[pb.SessionResponse]:
        """What the next session must be told too."""
        return [event for event in self._events if event.WhichOneof("event") in _DURABLE]


class Outbox:
    """Sends events to the session in place; keeps the ends of reads and leases for the next one while there is none."""

    def __init__(self) -> None:
        self._session: SessionQueue | None = None
        self._backlog: deque[pb.SessionResponse] = deque()
        self.dropped_count = 0

    @property
    def connected(self) -> bool:
        """Whether a session is in place."""
        return self._session is not None

    def is_current(self, session: SessionQueue | None) -> bool:
        """Whether that session is the one in place."""
        return session is not None and session is self._session

    @property
    def session(self) -> SessionQueue | None:
        """The session in place."""
        return self._session

    def open(self, opened: pb.SessionOpened) -> SessionQueue:
        """Put a session in place: first `opened`, then what had no session to go to. An older session ends."""
        if self._session is not None:
            self.close(self._session)
        session = SessionQueue()
        session.put(pb.SessionResponse(opened=opened))
        for event in self._backlog:
            # The command that it answers was another session's.
            event.command_id = 0
            session.put(event)
        self._backlog.clear()
        self._session = session
        return session

    def close(self, session: SessionQueue) -> None:
        """End a session; does nothing if it ended before."""
        session.close()
        if session is self._session:
            self._session = None
            for event in session.durable_events():
                self._keep(event)

    def end(self) -> None:
        """End the session in place once everything has been sent."""
        if self._session is not None:
            self._session.end()

    def emit(self, event: pb.SessionResponse) -> None:
        """Send an event, or keep it if it must not be lost."""
        if self._session is not None:
            self._session.put(event)
        elif event.WhichOneof("event") in _DURABLE:
            self._keep(event)

    def _keep(self, event: pb.SessionResponse) -> None:
        if len(self._backlog) >= BACKLOG_EVENTS_MAX:
            self._backlog.popleft()
            self.dropped_count += 1
        self._backlog.append(event)
