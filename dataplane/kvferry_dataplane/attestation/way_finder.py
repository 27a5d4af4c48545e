"""Which ways to a peer are probed, and in which order."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace

import structlog

from kvferry.core.errors import KvferryError, TransportFailed
from kvferry_dataplane.attestation.findings import Way
from kvferry_dataplane.attestation.pattern import PROBE_BYTES
from kvferry_dataplane.attestation.read_probe import ReadProbes
from kvferry_dataplane.attestation.transport_probe import TransportProbes
from kvferry_dataplane.paths import STREAM_BACKEND, Path, PathPolicy, PathRule
from kvferry_dataplane.peers import Peer, ProbeTarget

GO_FIRST_SECONDS_MAX = 1.0
"""So long a probe of the transport waits for reads to end."""
READ_FOLLOWS_SECONDS = 0.02
SURVEY_SECONDS_MAX = 5.0
"""A survey's probe of the transport begins within this time: so long the source makes progress for it."""
_log = structlog.get_logger("kvferry.dataplane.attestation")


class WayFinder:
    """Probes the ways that reads of a peer may take by the configuration of this data plane."""

    def __init__(
        self,
        policy: PathPolicy,
        reads: ReadProbes,
        transports: TransportProbes,
        until_idle: Callable[[], Awaitable[None]],
    ) -> None:
        """``until_idle`` waits until no read is outstanding."""
        self._policy = policy
        self._reads = reads
        self._transports = transports
        self._until_idle = until_idle

    async def find(self, peer: Peer, until: float) -> tuple[list[Way], list[str]]:
        """The ways to it, and why others could not be attested; the transport's is probed ``until`` then.

        Where a pool is mapped all reads of it are copies. Otherwise the transport reads it, the lease words at least,
        and chunks may be packed.
        """
        target = peer.probe
        if target is None or target.size_bytes != PROBE_BYTES:
            return [], ["the source offers nothing for probes to read"]
        mapped = await _tried(self._reads.attest(peer, target, Path.LOCAL))
        if isinstance(mapped, Way):
            return [mapped], []
        if self._policy.rule is PathRule.LOCAL or mapped.metadata.get("field") != "path":
            # Whatever is wrong with a mapped pool, reads of it go no other way.
            return [], [str(mapped)]
        own = self._transports.transport
        if peer.transport is not own:
            return [], [f"the source speaks {peer.transport}, this data plane {own}; {mapped.message}"]
        await self._let_reads_go_first()
        found = [await _tried(self._transports.attest(peer, until))]
        if peer.pack is not None and self._policy.rule in (PathRule.AUTO, PathRule.PACKED):
            found.append(await self._packed(peer, target, found[0]))
        ways = [way for way in found if isinstance(way, Way)]
        return ways, [str(error) for error in found if isinstance(error, KvferryError)]

    async def survey(self, peer: Peer) -> dict[Path, Way | KvferryError]:
        """Every path to it, whichever reads would take, and why those are impossible that are."""
        target, method = peer.probe, Path(self._transports.transport.method)
        if target is None or target.size_bytes != PROBE_BYTES:
            nothing = TransportFailed("the source offers nothing for probes to read")
            return dict.fromkeys((Path.LOCAL, method, Path.PACKED), nothing)
        found = {Path.LOCAL: await _tried(self._reads.attest(peer, target, Path.LOCAL))}
        await self._let_reads_go_first()
        found[method] = self._why_not_by_transport(peer) or await _tried(
            self._transports.attest(peer, time.monotonic() + SURVEY_SECONDS_MAX)
        )
        found[Path.PACKED] = self._why_not_packed() or await self._packed(peer, target, found[method])
        return found

    def _why_not_by_transport(self, peer: Peer) -> KvferryError | None:
        own = self._transports.transport
        if peer.transport is not own:
            return TransportFailed(f"the source speaks {peer.transport}, this data plane {own}")
        return self._why_not_configured(PathRule.AUTO, PathRule(own.method), PathRule.PACKED)

    def _why_not_packed(self) -> KvferryError | None:
        return self._why_not_configured(PathRule.AUTO, PathRule.PACKED)

    def _why_not_configured(self, *allowing: PathRule) -> KvferryError | None:
        rule = self._policy.rule
        return None if rule in allowing else TransportFailed(f"path={rule} is configured")

    def forget_reports(self) -> None:
        """Let go of what the transport's library has said beside any probe."""
        self._transports.forget_reports()

    async def _let_reads_go_first(self) -> None:
        """An agent is made and destroyed for the probe, which holds up every thread for some milliseconds."""
        try:
            async with asyncio.timeout(GO_FIRST_SECONDS_MAX):
                # Control tells of a peer just before its first read.
                await asyncio.sleep(READ_FOLLOWS_SECONDS)
                await self._until_idle()
        except TimeoutError:
            _log.debug("a transport is probed while reads are outstanding")

    async def _packed(self, peer: Peer, target: ProbeTarget, read: Way | KvferryError) -> Way | KvferryError:
        packed = await _tried(self._reads.attest(peer, target, Path.PACKED))
        if isinstance(packed, Way) and packed.backend != STREAM_BACKEND and isinstance(read, Way):
            # The transport carries the chunks.
            return replace(packed, use=read.use)
        return packed


async def _tried(attested: Coroutine[None, None, Way]) -> Way | KvferryError:
    try:
        return await attested
    except KvferryError as error:
        return error
