"""Probes that are reads: they take the same way as all others, through the reads' thread, as its least urgent work."""

import asyncio
import secrets
import time
from collections.abc import Callable

from kvferry_dataplane.attestation.findings import Seconds, Way
from kvferry_dataplane.attestation.pattern import pattern_of
from kvferry_dataplane.attestation.plans import LARGE, LATENCY, PROBE_SECONDS_MAX, ROUNDS, SMALL, ProbePlan
from kvferry_dataplane.attestation.scratch import Scratch
from kvferry_dataplane.desk import PRIORITY_MAX
from kvferry_dataplane.paths import STREAM_BACKEND, STREAM_TRANSPORT, Path, Route
from kvferry_dataplane.peers import Peer, ProbeTarget
from kvferry_dataplane.reads.request import ReadOutcome, ReadPart, ReadRequest
from kvferry_dataplane.transports.transport import TransportUse


class ReadProbes:
    """Submits them, and is told how they ended. Used on the event loop, for one peer at a time."""

    def __init__(self, submit: Callable[[ReadRequest], None], scratch: Scratch) -> None:
        self._submit = submit
        self._scratch = scratch
        self._waiting: dict[str, asyncio.Future[ReadOutcome]] = {}

    def finished(self, outcome: ReadOutcome) -> bool:
        """Take in how a read ended; False if it is none of these."""
        waiting = self._waiting.get(outcome.transfer)
        if waiting is None:
            return False
        if not waiting.done():
            waiting.set_result(outcome)
        return True

    async def attest(self, peer: Peer, target: ProbeTarget, path: Path) -> Way:
        """Read a peer's pattern on one path.

        Raises:
            KvferryError: the path is impossible, the peer is gone, or other bytes arrived.
        """
        # The first makes the connection.
        route = await self._read(peer, target, path, LATENCY)
        best = {}
        for plan in (LATENCY, LARGE, SMALL):
            self._scratch.poison()
            outcomes = [await self._read(peer, target, path, plan) for _ in range(ROUNDS)]
            best[plan.piece_bytes] = min(outcome.read_seconds for outcome in outcomes)
            self._scratch.require(plan, pattern_of(peer.boot_id))
        main = route.main
        assert main is not None
        seconds = Seconds(*(best[plan.piece_bytes] for plan in (LATENCY, LARGE, SMALL)))
        return Way(path, main.backend, _use(main), seconds)

    async def _read(self, peer: Peer, target: ProbeTarget, path: Path, plan: ProbePlan) -> ReadOutcome:
        request = self._request(peer, target, path, plan)
        waiting: asyncio.Future[ReadOutcome] = asyncio.get_running_loop().create_future()
        self._waiting[request.transfer] = waiting
        self._submit(request)
        try:
            outcome = await waiting
        finally:
            del self._waiting[request.transfer]
        if outcome.failure is not None:
            raise outcome.failure
        return outcome

    def _request(self, peer: Peer, target: ProbeTarget, path: Path, plan: ProbePlan) -> ReadRequest:
        offsets = peer.pool.size_bytes, self._scratch.pool_offset
        now = time.monotonic()
        part = ReadPart(
            peer=peer,
            chunks=lambda: iter([plan.copies(*offsets)]),
            regions=lambda: (plan.region(*offsets),),
            sample=lambda: iter([plan.copies(*offsets)]),
            slot=target.slot,
            word=target.word,
            total_bytes=plan.total_bytes,
            pieces_max=int(plan.order.size),
            only=path,
        )
        return ReadRequest(
            transfer=f"probe-{secrets.token_hex(12)}",
            parts=(part,),
            total_bytes=plan.total_bytes,
            pieces_max=part.pieces_max,
            accepted_at=now,
            deadline=now + PROBE_SECONDS_MAX,
            priority=-PRIORITY_MAX - 1,
            source=f"probe {peer.name}",
        )


def _use(route: Route) -> TransportUse:
    """What moves the bytes where no transport's library has a say; nothing is known here where one has."""
    if route.path is Path.LOCAL:
        return TransportUse(route.backend, "", "copied out of mapped memory")
    if route.backend == STREAM_BACKEND:
        return TransportUse(STREAM_TRANSPORT, "", "sent by the source on a connection of its own")
    return TransportUse("", "", f"chunks are carried by {route.backend}")
