"""Attests peers, one at a time and beside everything else: each when it is first told of, and again when it is slow."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from kvferry.core.errors import KvferryError, ResourceExhausted
from kvferry_dataplane.attestation.findings import Attestation, Way
from kvferry_dataplane.attestation.plans import AGAIN_WITHIN_SECONDS, FIRST_WITHIN_SECONDS
from kvferry_dataplane.attestation.rate_book import RateBook
from kvferry_dataplane.paths import Path
from kvferry_dataplane.peers import Peer

FORGET_SECONDS = 60.0
_log = structlog.get_logger("kvferry.dataplane.attestation")


SURVEYS_MAX = 64
"""Surveys that wait for their turn."""
Survey = dict[Path, Way | KvferryError]


class WayFinder(Protocol):
    """Probes a peer."""

    async def find(self, peer: Peer, until: float) -> tuple[list[Way], list[str]]:
        """The ways that reads of it may take, and why others could not be attested. What needs the source's progress
        must have begun by ``until``, on the monotonic clock.
        """
        ...

    async def survey(self, peer: Peer) -> Survey:
        """Every path to it, and why those are impossible that are."""
        ...

    def forget_reports(self) -> None:
        """Let go of what libraries have said beside any probe."""
        ...


class Prober:
    """The peers that are attested or wait for it: as many as there are peers at most. Used on the event loop."""

    def __init__(self, finder: WayFinder, rates: RateBook) -> None:
        self._finder = finder
        self._rates = rates
        self._peers: dict[str, Peer] = {}
        self._found: dict[str, Attestation] = {}
        self._queue: dict[str, float] = {}
        """Until when each is probed."""
        self._surveys: deque[tuple[Peer, Callable[[Survey], None]]] = deque()
        self._queued = asyncio.Event()
        self._under_way: Peer | None = None
        self.on_attested: Callable[[str, Attestation], None] = lambda _peer, _attestation: None

    def connect(self, peer: Peer, *, again: bool = False) -> None:
        """Attest a peer, or say what is known of it, unless it is to be probed ``again``. What could not be attested
        before is tried again.
        """
        found = self._found.get(peer.name)
        if found is not None and not found.refusals and not again:
            self.on_attested(peer.name, found)
            return
        if self._under_way is None or self._peers.get(peer.name) is not self._under_way or again:
            self._peers[peer.name] = peer
            self._enqueue(peer.name, FIRST_WITHIN_SECONDS)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self._queue.pop(peer.name, None)
        self._peers.pop(peer.name, None)
        self._found.pop(peer.name, None)
        self._rates.forget(peer.name)

    def survey(self, peer: Peer, answer: Callable[[Survey], None]) -> None:
        """Find out, beside what is attested and before what waits to be, which paths to a peer are possible.

        Raises:
            ResourceExhausted: too many surveys wait.
        """
        if len(self._surveys) >= SURVEYS_MAX:
            raise ResourceExhausted.of_bound("surveys", SURVEYS_MAX, "so many wait")
        self._surveys.append((peer, answer))
        self._queued.set()

    def slow(self, peer: str) -> None:
        """Reads of a peer have become slow, or go on although it is not attested: probe it again."""
        if peer in self._peers:
            _log.info("a peer is probed again", peer=peer)
            self._enqueue(peer, AGAIN_WITHIN_SECONDS)

    def degraded_count(self) -> int:
        """Ways that have lost more than half of their rate."""
        return sum(way.degraded for found in self._found.values() for way in found.ways)

    def attested_count(self) -> int:
        """Peers to which all ways are attested."""
        return sum(not found.refusals for found in self._found.values())

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(FORGET_SECONDS):
                    await self._queued.wait()
            except TimeoutError:
                self._finder.forget_reports()
                continue
            self._queued.clear()
            while self._queue or self._surveys:
                if self._surveys:
                    surveyed, answer = self._surveys.popleft()
                    answer(await self._finder.survey(surveyed))
                    continue
                name = next(iter(self._queue))
                until = self._queue.pop(name)
                self._under_way = self._peers[name]
                await self._attest(self._under_way, until)
                self._under_way = None

    def _enqueue(self, peer: str, seconds: float) -> None:
        self._queue[peer] = max(time.monotonic() + seconds, self._queue.get(peer, 0.0))
        self._queued.set()

    async def _attest(self, peer: Peer, until: float) -> None:
        ways, refusals = await self._finder.find(peer, until)
        if self._peers.get(peer.name) is not peer:
            return
        before = self._found.get(peer.name, Attestation())
        found = self._found[peer.name] = before.then(ways, refusals)
        for way in found.ways:
            if (way.path, way.backend) in before.known:
                self._rates.probed(peer.name, way.path, degraded=way.degraded)
            else:
                self._rates.watch(peer.name, way.path, way.seconds.times)
            _log_way(peer.name, way)
        if refusals:
            self._rates.refused(peer.name)
        for refusal in refusals:
            _log.warning("not attested", peer=peer.name, message=refusal)
        self.on_attested(peer.name, found)


def _log_way(peer: str, way: Way) -> None:
    say = _log.warning if way.degraded else _log.info
    say(
        "degraded" if way.degraded else "attested",
        peer=peer,
        path=way.path.value,
        backend=way.backend,
        transport=way.use.transport,
        device=way.use.device,
        how=way.use.how,
        gbytes_per_s=round(way.gbytes_per_s, 3),
        small_gbytes_per_s=round(way.small_gbytes_per_s, 3),
        latency_us=round(way.seconds.latency * 1e6, 1),
        best_gbytes_per_s=round(way.best_gbytes_per_s, 3),
    )
