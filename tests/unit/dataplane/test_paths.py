"""Which path is taken, over which wire, and what is said of it."""

import pytest

from kvferry.core.backends import Transport
from kvferry.core.errors import TransportFailed
from kvferry_dataplane.packed.costs import Verdict
from kvferry_dataplane.paths import (
    Mapping,
    Packing,
    PackWire,
    Path,
    PathPolicy,
    PathRule,
    Route,
    SameHost,
    WireRule,
    check_transport,
    choose,
    why_not_to_map,
)

FAR = Mapping("", "the source is on another host")


def packing(*, has_slots: bool, packed: bool = True) -> Packing:
    """A source that packs, and what the costs say."""
    return Packing(lambda: Verdict(packed, "because"), has_slots)


def route(policy: PathPolicy, source: Packing | None) -> Route:
    """The route of some bytes."""
    return choose(policy, FAR, Transport.NIXL_UCX, source, has_bytes=True)


@pytest.mark.parametrize(
    ("wire", "has_slots", "backend"),
    [
        (WireRule(PackWire.AUTO, has_rdma=False), True, "stream"),
        (WireRule(PackWire.AUTO, has_rdma=True), True, "UCX"),
        (WireRule(PackWire.AUTO, has_rdma=True), False, "stream"),
        (WireRule(PackWire.STREAM, has_rdma=True), True, "stream"),
        (WireRule(PackWire.NIXL, has_rdma=False), True, "UCX"),
    ],
)
@pytest.mark.parametrize("rule", [PathRule.AUTO, PathRule.PACKED])
def test_the_wire_of_packed_chunks(rule: PathRule, wire: WireRule, has_slots: bool, backend: str) -> None:
    """NIXL carries them where there is RDMA, or where that is forced; and only from sources that hold them."""
    taken = route(PathPolicy(rule, wire=wire), packing(has_slots=has_slots))
    assert (Path.PACKED, backend) == (taken.path, taken.backend)
    streamed_unlike_wanted = wire.wants_slots and backend == "stream"
    assert streamed_unlike_wanted == ("the source has no staging slots" in taken.choice)


def test_a_forced_wire_is_never_replaced() -> None:
    """Where NIXL is forced as the wire, a source without slots is not packed: refused, or read piece by piece."""
    wire = WireRule(PackWire.NIXL)
    with pytest.raises(TransportFailed, match="no staging slots"):
        route(PathPolicy(PathRule.PACKED, wire=wire), packing(has_slots=False))
    taken = route(PathPolicy(wire=wire), packing(has_slots=False))
    assert Path.NIXL is taken.path
    assert "no staging slots" in taken.choice


def test_costs_decide_unless_a_path_is_forced() -> None:
    """The verdict is followed, and said."""
    source = packing(has_slots=False, packed=False)
    assert Route(Path.NIXL, "UCX", "the source is on another host; because") == route(PathPolicy(), source)
    assert Path.PACKED is route(PathPolicy(PathRule.PACKED), source).path


def test_a_read_without_bytes_says_so() -> None:
    """Where there is nothing to read, the choice does not speak of a source that packs as if it did not."""
    taken = choose(PathPolicy(), FAR, Transport.NIXL_UCX, packing(has_slots=False), has_bytes=False)
    assert Path.NIXL is taken.path
    assert "nothing to read" in taken.choice


def test_the_path_of_unpacked_reads_names_the_transport() -> None:
    """Reads by UCX itself are told apart from NIXL's, and NIXL's by what it stands on."""
    taken = [choose(PathPolicy(), FAR, transport, None, has_bytes=True) for transport in Transport]
    assert [("nixl", "UCX"), ("nixl", "LIBFABRIC"), ("ucx", "UCX")] == [(route.path, route.backend) for route in taken]


def test_a_source_of_another_transport_is_refused() -> None:
    """A source that is not mapped has to speak the same transport; the refusal names both, and why it is not mapped."""
    check_transport(Transport.UCX, Transport.UCX, FAR.why_not)
    with pytest.raises(TransportFailed, match=r"nixl/LIBFABRIC.*speaks nixl/UCX, and the source is on another host"):
        check_transport(Transport.NIXL_UCX, Transport.NIXL_LIBFABRIC, FAR.why_not)


@pytest.mark.parametrize(
    ("same_host", "own", "source", "why"),
    [
        (SameHost.FUSED, b"a", b"a", ""),
        (SameHost.FUSED, b"a", b"", "the source does not share its memory"),
        (SameHost.FUSED, b"", b"a", "the destination does not share its memory"),
        (SameHost.FUSED, b"a", b"b", "the source is on another host"),
        (SameHost.BACKEND, b"a", b"a", "same_host=backend is configured"),
        (SameHost.OFF, b"", b"a", "same_host=off is configured"),
    ],
)
def test_whether_a_source_of_this_host_is_mapped(same_host: SameHost, own: bytes, source: bytes, why: str) -> None:
    """Only where both sides show their memory; else it is said which of them does not."""
    assert why == why_not_to_map(PathPolicy(same_host=same_host), own, source)
