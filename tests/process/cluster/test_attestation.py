"""What pairs are attested to be, shown to whoever asks, and what floors make of it."""

import re

import pytest

from kvferry import PathRefused
from kvferry.core.errors import OperatorError
from kvferry.sdk.results import Pair as PairVerdict
from tests.process.cluster.pair import RANKS, Pair, eventually, running_pair

UNMAPPED = ("--path", "nixl", "--same-host", "backend")


async def verdict_of(pair: Pair) -> PairVerdict:
    """The pair, as the cluster sees it."""
    return await pair.router.check_pair(pair.prefill.name, pair.decode.name)


async def pull(pair: Pair) -> str:
    """Pull two blocks; returns the path."""
    await pair.fill([1, 2], seed=1)
    publication = await pair.publish([1, 2], readers=0)
    await pair.poison([3, 4], 0)
    result = await pair.destination.pull(publication.handle, [3, 4], timeout_s=20)
    assert 0 == await pair.differing([1, 2], [3, 4])
    return str(result.path)


async def attested(pair: Pair) -> PairVerdict:
    """The pair, once all of its ranks are attested."""

    async def all_known() -> bool:
        routes = (await verdict_of(pair)).routes
        return sum(route.rank_pair_count for route in routes) == RANKS * RANKS

    await eventually(all_known, "every pair of ranks is attested", timeout_s=30)
    return await verdict_of(pair)


async def refused(pair: Pair, kind: type[OperatorError]) -> OperatorError:
    """The refusal of a pull; the destination's blocks are as they were."""
    await pair.fill([1, 2], seed=1)
    publication = await pair.publish([1, 2], readers=0)
    await pair.poison([3, 4], 7)
    before = await pair.differing([1, 2], [3, 4])
    with pytest.raises(kind) as refusal:
        await pair.destination.pull(publication.handle, [3, 4], timeout_s=20)
    assert before == await pair.differing([1, 2], [3, 4])
    return refusal.value


async def test_a_pair_is_attested_after_its_first_pull() -> None:
    """Before it nothing is known; after it every control of the cluster names the way and its figures."""
    async with running_pair() as pair:
        assert () == (await verdict_of(pair)).routes
        assert "local" == await pull(pair)
        (route,) = (await attested(pair)).routes
        assert ("local", "memory", "memory") == (route.path, route.backend, route.transport)
        assert route.gbytes_per_s > 0
        assert route.latency_s > 0


@pytest.mark.parametrize(("environment", "transport"), [({}, "cma"), ({"UCX_TLS": "tcp"}, "tcp")], ids=["cma", "tcp"])
@pytest.mark.long
async def test_a_refused_transport_refuses_the_first_pull(environment: dict[str, str], transport: str) -> None:
    """With `!*:tcp` the first pull waits for the probe, and goes on or is refused by what UCX uses."""
    async with running_pair(
        data_plane_flags=UNMAPPED,
        data_plane_environment=environment,
        transfers={"require_path": ["!*:tcp"]},
    ) as pair:
        assert (await verdict_of(pair)).compatible
        if transport == "cma":
            assert "nixl" == await pull(pair)
            assert (await attested(pair)).compatible
            return
        error = await refused(pair, PathRefused)
        assert "require_path: source has nixl/UCX:tcp, destination !*:tcp" in error.message
        verdict = await attested(pair)
        assert not verdict.compatible
        assert [("PATH_REFUSED", "require_path")] == [(m.reason, m.field) for m in verdict.mismatches]


@pytest.mark.long
async def test_a_rate_below_the_floor_refuses_the_first_pull() -> None:
    """A floor that no memory reaches refuses the pair, with both rates."""
    async with running_pair(transfers={"min_gbytes_per_s": 100_000.0}) as pair:
        error = await refused(pair, PathRefused)
        assert re.search(r"min_gbytes_per_s: source has [0-9.]+ GB/s on local/memory:memory", error.message)
        assert "destination 100000 GB/s" in error.message
        assert not (await attested(pair)).compatible


@pytest.mark.long
async def test_a_pair_that_cannot_map_is_refused_before_any_request() -> None:
    """`require_path: local` refuses, at pairing and at the pull, workers of which one does not map the other."""
    async with running_pair(data_plane_flags=UNMAPPED, transfers={"require_path": ["local"]}) as pair:
        verdict = await verdict_of(pair)
        assert not verdict.compatible
        (mismatch,) = verdict.mismatches
        assert ("PATH_REFUSED", "require_path", "local") == (mismatch.reason, mismatch.field, mismatch.destination)
        assert "no memory in common" in mismatch.source
        error = await refused(pair, PathRefused)
        assert f"source has {mismatch.source}, destination local" in error.message
        assert () == (await verdict_of(pair)).routes


@pytest.mark.long
async def test_a_pair_that_maps_is_what_local_demands() -> None:
    """`require_path: local` lets workers of one host pull."""
    async with running_pair(transfers={"require_path": ["local"]}) as pair:
        assert (await verdict_of(pair)).compatible
        assert "local" == await pull(pair)
