"""The sources of this host: which of them are mapped, and why others are not."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from kvferry.core.errors import KvferryError
from kvferry_dataplane.paths import Mapping, PathPolicy, why_not_to_map
from kvferry_dataplane.peers import Peer, peer_lost
from kvferry_dataplane.reads.mailbox import Mailbox
from kvferry_dataplane.sharing.source import Source

OPENING_THREADS = 4
_log = structlog.get_logger("kvferry.dataplane.sharing")


@dataclass(eq=False, slots=True)
class _Entry:
    """What is known of one peer."""

    peer: Peer
    why_not: str = ""
    source: Source | None = None
    is_lost: bool = False

    @property
    def is_opening(self) -> bool:
        return self.source is None and not self.why_not


class SharedSources:
    """Maps the memory of the peers of this host, and unmaps it when they go or die.

    Belongs to the reads' thread; mapping and unmapping happen on threads of its own, since they take time.
    """

    def __init__(
        self, policy: PathPolicy, host_id: bytes, open_source: Callable[[Peer], Source], mailbox: Mailbox
    ) -> None:
        """``open_source`` is called on another thread; what it raises is why the peer is not mapped."""
        self._policy = policy
        self._host_id = host_id
        self._open_source = open_source
        self._mailbox = mailbox
        self._entries: dict[str, _Entry] = {}
        self._lost: list[Peer] = []
        self._opened: deque[tuple[_Entry, Source | Exception]] = deque()
        self._closing = False
        self._threads = ThreadPoolExecutor(OPENING_THREADS, thread_name_prefix="kvferry-sharing")

    def connect(self, peer: Peer) -> bool:
        """Begin to map a peer, if it is of this host and not mapped; returns whether it is not even tried."""
        known = self._entries.get(peer.name)
        if known is not None and (known.is_opening or (known.source is not None and not known.is_lost)):
            return False
        if known is not None:
            self.disconnect(peer)
        entry = _Entry(peer, why_not_to_map(self._policy, self._host_id, peer.host_id))
        self._entries[peer.name] = entry
        if entry.is_opening:
            self._threads.submit(self._open, entry)
        return not entry.is_opening

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer; its memory is unmapped once no copy uses it."""
        entry = self._entries.pop(peer.name, None)
        if entry is not None:
            self._retire(entry)

    def mapping(self, peer: Peer) -> Mapping | None:
        """Whether a peer is mapped; None while that is under way.

        Raises:
            PeerError: reason PEER_LOST: it has died.
        """
        entry = self._entries.get(peer.name)
        if entry is None:
            return Mapping("", "not connected")
        if entry.is_lost:
            raise peer_lost(peer)
        if entry.is_opening:
            return None
        return Mapping("" if entry.source is None else entry.source.pool.backend, entry.why_not)

    def source(self, peer: Peer) -> Source:
        """The mapping of a peer.

        Raises:
            PeerError: reason PEER_LOST: there is none.
        """
        entry = self._entries.get(peer.name)
        if entry is None or entry.source is None:
            raise peer_lost(peer)
        return entry.source

    def release(self, source: Source) -> None:
        """A copy that used a source is over."""
        source.users -= 1
        if source.retired and not source.users:
            self._close(source)

    def take_lost(self) -> list[Peer]:
        """Mapped peers that have died since this was last asked."""
        taken, self._lost = self._lost, []
        return taken

    def close(self) -> None:
        """Unmap everything. No copy may be under way."""
        for entry in list(self._entries.values()):
            self.disconnect(entry.peer)
        self._threads.shutdown()
        self._closing = True
        # What was mapped meanwhile came too late.
        self._take_opened()

    def _open(self, entry: _Entry) -> None:
        """On a thread of its own. Whatever happens is told: reads wait for it."""
        try:
            self._opened.append((entry, self._open_source(entry.peer)))
        except Exception as error:
            self._opened.append((entry, error))
        self._mailbox.put(lambda _: self._take_opened())

    def _take_opened(self) -> None:
        while self._opened:
            entry, opened = self._opened.popleft()
            if isinstance(opened, Source):
                entry.source = opened
                self._watch_or_retire(entry, opened)
            elif isinstance(opened, KvferryError):
                entry.why_not = f"its pool cannot be mapped: {opened.message}"
                _log.warning("peer of this host not mapped", peer=entry.peer.name, message=opened.message)
            else:
                raise opened

    def _watch_or_retire(self, entry: _Entry, source: Source) -> None:
        if self._entries.get(entry.peer.name) is not entry:
            self._retire(entry)
            return
        self._mailbox.watch(source.connection, lambda _: self._ended(entry))
        _log.info("mapped", peer=entry.peer.name, backend=source.pool.backend, bytes=entry.peer.pool.size_bytes)

    def _ended(self, entry: _Entry) -> None:
        if self._entries.get(entry.peer.name) is entry:
            _log.info("mapped peer died", peer=entry.peer.name)
            self._lost.append(entry.peer)
            entry.is_lost = True
            self._retire(entry)

    def _retire(self, entry: _Entry) -> None:
        source = entry.source
        if source is not None and not source.retired:
            self._mailbox.unwatch(source.connection)
            source.retired = True
            if not source.users:
                self._close(source)

    def _close(self, source: Source) -> None:
        if self._closing:
            source.close()
        else:
            # On a thread of its own as well: to unmap gigabytes takes milliseconds.
            self._threads.submit(source.close)
