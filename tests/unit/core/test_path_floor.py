"""Rules over ways are understood or refused by name, and allow what they say and nothing else."""

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry.core.path_floor import WayFacts, floor_mismatches, path_floor, possible_way_mismatches
from kvferry.core.reasons import Reason

CMA = WayFacts("nixl", "UCX", "cma", 5.0)
TCP = WayFacts("nixl", "UCX", "tcp", 0.5)
RDMA = WayFacts("nixl", "UCX", "rc_mlx5", 40.0)
MIXED = WayFacts("nixl", "UCX", "rc_mlx5+tcp", 20.0)
UNKNOWN = WayFacts("nixl", "UCX", "", 5.0)
LOCAL = WayFacts("local", "memory", "memory", 12.0)
STREAM = WayFacts("packed", "stream", "tcp", 1.0)


@pytest.mark.parametrize(
    ("rules", "allowed", "refused"),
    [
        ([], [CMA, TCP, UNKNOWN, LOCAL, STREAM], []),
        (["local"], [LOCAL], [CMA, STREAM]),
        (["nixl/UCX"], [CMA, TCP, UNKNOWN], [LOCAL, STREAM]),
        (["nixl/LIBFABRIC"], [], [CMA, LOCAL]),
        (["!*:tcp"], [CMA, LOCAL, RDMA], [TCP, STREAM, MIXED, UNKNOWN]),
        (["local", "nixl:rc_*"], [LOCAL, RDMA], [CMA, TCP, MIXED, UNKNOWN, STREAM]),
        (["*:cma", "*:memory"], [CMA, LOCAL], [TCP, UNKNOWN]),
        (["!packed"], [CMA, TCP, LOCAL], [STREAM]),
        (["nixl", "!*:tcp"], [CMA, RDMA], [TCP, LOCAL, STREAM]),
    ],
)
def test_a_way_is_judged_by_all_rules(rules: list[str], allowed: list[WayFacts], refused: list[WayFacts]) -> None:
    """What fits a rule is allowed, what fits a refusing one is not, whatever else it fits."""
    floor = path_floor(rules, 0.0)
    for way in allowed:
        assert () == floor_mismatches(floor, [way]), way.name
    for way in refused:
        (mismatch,) = floor_mismatches(floor, [way])
        assert (Reason.PATH_REFUSED, "require_path", way.name) == (mismatch.reason, mismatch.field, mismatch.source)
        assert ", ".join(rules) == mismatch.destination


def test_a_way_that_is_never_taken_is_not_judged() -> None:
    """Beside an allowed way, one that the rules leave out is no reason to refuse; each that may be taken must do."""
    assert () == floor_mismatches(path_floor(["nixl"], 2.0), [CMA, STREAM])
    (slow,) = floor_mismatches(path_floor([], 2.0), [CMA, STREAM])
    assert ("min_gbytes_per_s", "1 GB/s on packed/stream:tcp", "2 GB/s") == (slow.field, slow.source, slow.destination)


def test_a_rate_is_compared_with_the_floor() -> None:
    """The floor itself is fast enough."""
    assert () == floor_mismatches(path_floor([], 5.0), [CMA])
    assert ["min_gbytes_per_s"] == [m.field for m in floor_mismatches(path_floor([], 5.1), [CMA])]


@pytest.mark.parametrize(
    ("rules", "can_map", "refused"),
    [
        (["local"], False, True),
        (["local"], True, False),
        (["nixl"], True, False),
        (["ucx"], True, True),
        (["packed"], False, False),
        (["!nixl", "!packed"], False, True),
        (["!nixl", "!packed"], True, False),
        # Only bytes can tell what UCX will use.
        (["!*:tcp"], False, False),
    ],
)
def test_a_pair_without_an_allowed_way_is_refused_before_any_byte(
    rules: list[str], can_map: bool, refused: bool
) -> None:
    """What no probe is needed for is refused at once."""
    found = possible_way_mismatches(path_floor(rules, 0.0), ("nixl", "UCX"), can_map=can_map, packs=True)
    assert refused is bool(found)


@pytest.mark.parametrize(
    "rule", ["", "*", "!*", "tcp", "nixl:", "nixl/", "rdma:cma", "nixl UCX", "!!local", "nixl:CMA", "local,nixl"]
)
def test_a_rule_that_cannot_be_understood_is_refused(rule: str) -> None:
    """The error names the rule's place and its text."""
    with pytest.raises(ConfigInvalid) as refusal:
        path_floor(["local", rule], 0.0)
    assert {"field": "transfers.require_path[1]", "value": rule} == refusal.value.metadata


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    """A floor is a number that a rate can be compared with."""
    with pytest.raises(ConfigInvalid, match="min_gbytes_per_s"):
        path_floor([], rate)


def test_too_many_rules_are_refused() -> None:
    """The list is bounded."""
    with pytest.raises(ConfigInvalid, match="at most 32"):
        path_floor(["local"] * 33, 0.0)


def test_only_some_floors_need_bytes() -> None:
    """Rules over paths are judged without a probe."""
    assert not path_floor(["local", "!packed"], 0.0).needs_attestation
    assert path_floor(["nixl:cma"], 0.0).needs_attestation
    assert path_floor([], 0.1).needs_attestation
