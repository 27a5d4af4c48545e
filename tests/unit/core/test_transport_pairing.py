"""Workers whose transports do not go together are told apart, by both sides' values."""

from dataclasses import replace

import pytest

from kvferry.core.reasons import Reason
from kvferry.core.transport_pairing import RankTransport, can_map, transport_mismatches, transport_warnings, way_of

UCX = RankTransport("nixl/UCX", "1.5.1", b"here", maps_same_host=True)
FAR = replace(UCX, host_id=b"there")
LIBFABRIC = replace(FAR, method="nixl/LIBFABRIC")


def told(source: list[RankTransport], destination: list[RankTransport]) -> list[tuple[str, str, str]]:
    """Field and both values of every mismatch."""
    found = transport_mismatches(source, destination)
    assert all(Reason.TRANSPORT_MISMATCH is mismatch.reason for mismatch in found)
    return [(mismatch.field, mismatch.source, mismatch.destination) for mismatch in found]


def test_other_transports_on_other_hosts_are_a_mismatch() -> None:
    """Neither can read the other."""
    assert [("transport", "nixl/UCX", "nixl/LIBFABRIC")] == told([UCX], [LIBFABRIC])
    assert [("transport", "nixl/LIBFABRIC, nixl/UCX", "nixl/UCX")] == told([LIBFABRIC, FAR], [UCX])


def test_memory_that_is_mapped_needs_no_transport() -> None:
    """On one host other transports are a remark, as long as the destination maps."""
    other = replace(LIBFABRIC, host_id=b"here")
    assert [] == told([other], [UCX])
    assert "transports differ: source nixl/LIBFABRIC, destination nixl/UCX" in transport_warnings([other], [UCX])[0]
    assert [("transport", "nixl/LIBFABRIC", "nixl/UCX")] == told([other], [replace(UCX, maps_same_host=False)])


def test_a_host_that_shares_nothing_is_nobodys() -> None:
    """Two ranks that do not say where they are do not map each other, nor do workers of which a rank is elsewhere."""
    nowhere = replace(UCX, host_id=b"")
    assert can_map([UCX], [UCX])
    assert not can_map([nowhere], [nowhere])
    assert not can_map([UCX, FAR], [UCX])


@pytest.mark.parametrize(
    ("source", "destination", "fits"),
    [
        ("1.5.1", "1.5.0", True),
        ("1.4.1", "1.5.1", True),
        ("1.5.1", "1.4.0", True),
        ("1.3.1", "1.5.1", False),
        ("1.5.1", "1.3.1", False),
        ("2.5.0", "1.5.0", False),
        ("", "1.5.1", True),
        ("unknown", "1.5.1", True),
    ],
)
def test_releases_of_nixl_may_be_neighbours(source: str, destination: str, fits: bool) -> None:
    """Those that are farther apart are refused with both versions; any that differ are remarked on."""
    sides = [replace(UCX, version=source)], [replace(FAR, version=destination)]
    assert ([] if fits else [("transport_version", source, destination)]) == told(*sides)
    (warning,) = transport_warnings(*sides)
    assert f"source {source or 'unknown'}, destination {destination}" in warning


def test_releases_of_ucx_itself_are_not_compared() -> None:
    """Which releases of UCX go together nobody has tried."""
    sides = [replace(UCX, method="ucx", version="1.21.0")], [replace(FAR, method="ucx", version="1.23.0")]
    assert [] == told(*sides)


def test_equal_workers_are_not_remarked_on() -> None:
    """Nothing differs, nothing is said."""
    assert () == transport_warnings([UCX, UCX], [FAR])


@pytest.mark.parametrize(
    ("method", "way"),
    [("nixl/UCX", ("nixl", "UCX")), ("nixl/LIBFABRIC", ("nixl", "LIBFABRIC")), ("ucx", ("ucx", "UCX"))],
)
def test_a_method_is_a_way(method: str, way: tuple[str, str]) -> None:
    """The path and the backend that results name."""
    assert way == way_of(method)
