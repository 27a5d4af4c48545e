"""Which ways to a peer are probed, and in which order."""

from collections.abc import Coroutine
from dataclasses import replace

from kvferry.core.backends import Transport
from kvferry.core.errors import KvferryError, TransportFailed
from kvferry.core.reasons import Reason
from kvferry_dataplane.attestation.findings import Way
from kvferry_dataplane.attestation.pattern import PROBE_BYTES
from kvferry_dataplane.attestation.read_probe import ReadProbes
from kvferry_dataplane.attestation.transport_probe import TransportProbes
from kvferry_dataplane.paths import STREAM_BACKEND, Path, PathPolicy, PathRule
from kvferry_dataplane.peers import Peer, ProbeTarget


class WayFinder:
    """Probes the ways that reads of a peer may take by the configuration of this data plane."""

    def __init__(
        self, policy: PathPolicy, transport: Transport, reads: ReadProbes, transports: TransportProbes
    ) -> None:
        self._policy = policy
        self._transport = transport
        self._reads = reads
        self._transports = transports

    async def find(self, peer: Peer) -> tuple[list[Way], list[str]]:
        """The ways to it, and why others could not be attested.

        Where a pool is mapped all reads of it are copies. Otherwise the transport reads it, the lease words at least,
        and chunks may be packed.
        """
        target = peer.probe
        if target is None or target.size_bytes != PROBE_BYTES:
            return [], ["the source offers nothing for probes to read"]
        mapped = await _tried(self._reads.attest(peer, target, Path.LOCAL))
        if isinstance(mapped, Way):
            return [mapped], []
        if self._policy.rule is PathRule.LOCAL or mapped.reason is not Reason.TRANSPORT_FAILED:
            return [], [str(mapped)]
        if peer.transport is not self._transport:
            return [], [f"the source speaks {peer.transport}, this data plane {self._transport}; {mapped.message}"]
        found = [await _tried(self._transports.attest(peer))]
        if peer.pack is not None and self._policy.rule in (PathRule.AUTO, PathRule.PACKED):
            found.append(await self._packed(peer, target, found[0]))
        ways = [way for way in found if isinstance(way, Way)]
        return ways, [str(error) for error in found if isinstance(error, KvferryError)]

    async def survey(self, peer: Peer) -> dict[Path, Way | KvferryError]:
        """Every path to it, whichever reads would take, and why those are impossible that are."""
        target, method = peer.probe, Path(self._transport.method)
        if target is None or target.size_bytes != PROBE_BYTES:
            nothing = TransportFailed("the source offers nothing for probes to read")
            return dict.fromkeys((Path.LOCAL, method, Path.PACKED), nothing)
        found = {Path.LOCAL: await _tried(self._reads.attest(peer, target, Path.LOCAL))}
        found[method] = self._why_not_by_transport(peer) or await _tried(self._transports.attest(peer))
        found[Path.PACKED] = self._why_not_packed() or await self._packed(peer, target, found[method])
        return found

    def _why_not_by_transport(self, peer: Peer) -> KvferryError | None:
        if peer.transport is not self._transport:
            return TransportFailed(f"the source speaks {peer.transport}, this data plane {self._transport}")
        return self._why_not_configured(PathRule.AUTO, PathRule(self._transport.method), PathRule.PACKED)

    def _why_not_packed(self) -> KvferryError | None:
        return self._why_not_configured(PathRule.AUTO, PathRule.PACKED)

    def _why_not_configured(self, *allowing: PathRule) -> KvferryError | None:
        rule = self._policy.rule
        return None if rule in allowing else TransportFailed(f"path={rule} is configured")

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
