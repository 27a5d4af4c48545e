"""Every way that reads of a peer may take is probed, and no other."""

from dataclasses import dataclass, field, replace

import pytest

from kvferry.core.backends import Transport
from kvferry.core.errors import KvferryError, PeerError, TransportFailed
from kvferry_dataplane.attestation.findings import Seconds, Way
from kvferry_dataplane.attestation.pattern import PROBE_BYTES
from kvferry_dataplane.attestation.way_finder import WayFinder
from kvferry_dataplane.packed.connection import PackPeer
from kvferry_dataplane.paths import Path, PathPolicy, PathRule
from kvferry_dataplane.peers import Peer, ProbeTarget
from kvferry_dataplane.transports.transport import TransportUse
from tests.unit.dataplane.fakes import peer as make_peer

SECONDS = Seconds(1e-4, 1e-3, 2e-3)
NIXL = Way(Path.NIXL, "UCX", TransportUse("rc_mlx5", "mlx5_0:1", "zero-copy"), SECONDS)
STREAM = Way(Path.PACKED, "stream", TransportUse("tcp", "", ""), SECONDS)
LOCAL = Way(Path.LOCAL, "memory", TransportUse("memory", "", ""), SECONDS)
NOT_MAPPED = TransportFailed.of_field("path", "local", "the source is on another host")
PEER = replace(make_peer("p"), probe=ProbeTarget(PROBE_BYTES, 0, 1))
PACKING = replace(PEER, pack=PackPeer("127.0.0.1:1", b"b" * 16))


@dataclass
class Probes:
    """Both kinds, with what each finds."""

    mapped: Way | KvferryError = field(default_factory=lambda: NOT_MAPPED)
    packed: Way | KvferryError = STREAM
    read: Way | KvferryError = NIXL
    transport: Transport = Transport.NIXL_UCX
    waited: bool = False

    async def attest(self, peer: Peer, target: ProbeTarget | float, path: Path = Path.NIXL) -> Way:
        """What was told."""
        found = {Path.LOCAL: self.mapped, Path.PACKED: self.packed, Path.NIXL: self.read}[path]
        if isinstance(found, KvferryError):
            raise found
        return found

    async def idle(self) -> None:
        """Reads are over."""
        self.waited = True


async def found(probes: Probes, peer: Peer = PEER, rule: PathRule = PathRule.AUTO) -> tuple[list[Way], list[str]]:
    """What is found."""
    finder = WayFinder(PathPolicy(rule), probes, probes, probes.idle)  # type: ignore[arg-type]
    return await finder.find(peer, 0.0)


async def test_a_mapped_pool_has_one_way() -> None:
    """Nothing else is probed, and no read has to be waited for."""
    probes = Probes(mapped=LOCAL)
    assert ([LOCAL], []) == await found(probes, PACKING)
    assert not probes.waited


async def test_what_is_not_mapped_is_read_or_packed() -> None:
    """The transport's probe lets reads go first."""
    probes = Probes()
    assert ([NIXL], []) == await found(probes)
    assert probes.waited
    assert ([NIXL, STREAM], []) == await found(probes, PACKING)
    assert ([NIXL], []) == await found(probes, PACKING, PathRule.NIXL)


async def test_chunks_that_the_transport_carries_use_what_it_uses() -> None:
    """Packed chunks in staging slots are read by the transport."""
    slots = replace(STREAM, backend="UCX", use=TransportUse("", "", ""))
    ways, _ = await found(Probes(packed=slots), PACKING)
    assert [NIXL.use, NIXL.use] == [way.use for way in ways]


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (TransportFailed("wrong bytes"), PathRule.AUTO),
        (PeerError("gone"), PathRule.AUTO),
        (NOT_MAPPED, PathRule.LOCAL),
    ],
    ids=["wrong bytes", "gone", "forced"],
)
async def test_no_other_way_hides_what_is_wrong_with_the_mapped_one(error: KvferryError, rule: PathRule) -> None:
    """Where reads are copies, or nothing, only copies are attested."""
    assert ([], [str(error)]) == await found(Probes(mapped=error), rule=rule)


async def test_a_way_that_fails_leaves_the_other() -> None:
    """What could not be attested is told beside what could."""
    ways, refusals = await found(Probes(read=PeerError("no answer")), PACKING)
    assert ([STREAM], ["PEER_UNREACHABLE: no answer"]) == (ways, refusals)


async def test_another_transport_is_not_probed() -> None:
    """Both names are told."""
    ways, (refusal,) = await found(Probes(transport=Transport.UCX))
    assert [] == ways
    assert "the source speaks nixl/UCX, this data plane ucx" in refusal


async def test_a_source_without_a_pattern_is_not_attested() -> None:
    """An older data plane offers nothing to read."""
    assert ([], ["the source offers nothing for probes to read"]) == await found(Probes(), make_peer("old"))
