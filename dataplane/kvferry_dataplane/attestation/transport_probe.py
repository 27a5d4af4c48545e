"""Probes of the transport: an agent of their own, which tells what it uses, reads a peer on a thread of its own.

The reads' own agent cannot be asked: UCX says once what it chooses, not for which peer. An agent that was just made
chooses as that one did, by the same settings and for the same memory. It costs some tens of milliseconds, and what
becomes stuck in it concerns nobody else.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

from kvferry.core.backends import Transport
from kvferry.core.errors import DeadlineExceeded, KvferryError, NotReady
from kvferry_dataplane.attestation.findings import Seconds, Way
from kvferry_dataplane.attestation.pattern import pattern_of
from kvferry_dataplane.attestation.plans import LARGE, LATENCY, PROBE_SECONDS_MAX, ROUNDS, SMALL, ProbePlan
from kvferry_dataplane.attestation.scratch import Scratch
from kvferry_dataplane.paths import Path
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.lingering import LingeringConnections
from kvferry_dataplane.transports.transport import TransportAgent, TransportLibrary

_POLL_SECONDS = 20e-6


class TransportProbes:
    """The thread and its agents. Used on the event loop, for one peer at a time."""

    def __init__(self, library: TransportLibrary, scratch: Scratch, lingering: LingeringConnections) -> None:
        self._library = library
        self._scratch = scratch
        self._lingering = lingering
        self._threads = ThreadPoolExecutor(1, "kvferry-attest")
        self._numbers = count(1)
        self._closing = False

    @property
    def transport(self) -> Transport:
        """Which transport it is."""
        return self._library.transport

    async def attest(self, peer: Peer, until: float) -> Way:
        """Read a peer's pattern by the transport, if that can begin by ``until``, on the monotonic clock.

        Raises:
            KvferryError: it is too late, the peer is gone or does not answer, the transport refuses, or other bytes
                arrived.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._attest, peer, until)

    def forget_reports(self) -> None:
        """Let go of what the library has said. Not while a probe is under way."""
        self._library.forget_reports()

    def close(self) -> None:
        """End the thread; a read under way is given up."""
        self._closing = True
        self._threads.shutdown()

    def _attest(self, peer: Peer, until: float) -> Way:
        name = f"probe-{next(self._numbers)}"
        self._scratch.make_current()
        agent = self._library.make_reporting_agent(name)
        try:
            agent.register(self._scratch.region)
            if time.monotonic() > until:
                raise NotReady(f"{peer.name} may rest by now: it is probed when it is read again")
            agent.add_peer(peer.agent_metadata)
            seconds = self._measure(agent, peer)
        except KvferryError as error:
            error.let_go()
            raise
        finally:
            with self._lingering.kept(is_reading=agent.is_reading):
                agent.close()
        transport = self._library.transport
        return Way(Path(transport.method), transport.backend, self._library.take_use(name), seconds)

    def _measure(self, agent: TransportAgent, peer: Peer) -> Seconds:
        # The first makes the connection.
        self._read(agent, peer, LATENCY)
        best = {}
        for plan in (LATENCY, LARGE, SMALL):
            self._scratch.poison()
            best[plan.piece_bytes] = min(self._read(agent, peer, plan) for _ in range(ROUNDS))
            self._scratch.require(plan, pattern_of(peer.boot_id))
        return Seconds(*(best[plan.piece_bytes] for plan in (LATENCY, LARGE, SMALL)))

    def _read(self, agent: TransportAgent, peer: Peer, plan: ProbePlan) -> float:
        """Seconds that a read took."""
        copies = plan.copies(peer.pool.size_bytes, self._scratch.pool_offset)
        source, own = peer.pool, self._scratch.region
        remote = replace(source, size_bytes=peer.mapped_bytes)
        started = time.monotonic()
        handle = agent.post_read(
            peer.agent_name,
            remote,
            copies.source_offsets + source.address,
            own,
            copies.destination_offsets + own.address,
            copies.lengths,
        )
        while not agent.is_done(handle):
            if self._closing:
                raise NotReady("the data plane is shutting down")
            if time.monotonic() > started + PROBE_SECONDS_MAX:
                raise DeadlineExceeded(f"{peer.name} has not answered for {PROBE_SECONDS_MAX:g} s")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - started
