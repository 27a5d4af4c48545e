"""Surveys: every path, whichever reads would take, one peer at a time and beside what is attested."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from kvferry.core.backends import Transport
from kvferry.core.errors import KvferryError, PeerError, ResourceExhausted, TransportFailed
from kvferry_dataplane.attestation.findings import Seconds, Way
from kvferry_dataplane.attestation.pattern import PROBE_BYTES
from kvferry_dataplane.attestation.prober import SURVEYS_MAX, Prober, Survey
from kvferry_dataplane.attestation.rate_book import RateBook
from kvferry_dataplane.attestation.way_finder import WayFinder
from kvferry_dataplane.attestation.wire import peer_surveyed_of
from kvferry_dataplane.paths import Path, PathPolicy, PathRule
from kvferry_dataplane.peers import Peer, ProbeTarget
from kvferry_dataplane.transports.transport import TransportUse
from tests.unit.dataplane.fakes import peer as make_peer

SECONDS = Seconds(1e-4, 1e-3, 2e-3)
TARGET = ProbeTarget(PROBE_BYTES, 3, 7)


def probed(name: str) -> Peer:
    """A peer that lets probes read."""
    return replace(make_peer(name), probe=TARGET)


class Probes:
    """Reads on a path as they are told to end; the transport's as a way over cma."""

    transport = Transport.NIXL_UCX

    def __init__(self, **errors: KvferryError) -> None:
        self.errors = errors

    async def attest(self, peer: Peer, _: ProbeTarget | float, path: Path = Path.NIXL) -> Way:
        """A way, or the error."""
        if path.value in self.errors:
            raise self.errors[path.value]
        return Way(path, "stream" if path is Path.PACKED else "UCX", TransportUse("cma", "memory", ""), SECONDS)


def finder_of(probes: Probes, rule: PathRule = PathRule.AUTO) -> WayFinder:
    """A finder over them."""

    async def idle() -> None:
        """No read is outstanding."""

    given: Any = (PathPolicy(rule), probes, probes, idle)
    return WayFinder(*given)


def told(survey: Survey) -> dict[str, str]:
    """The reason by path; empty where it is possible."""
    return {path.value: "" if isinstance(found, Way) else found.message for path, found in survey.items()}


async def test_every_path_is_probed_although_the_pool_is_mapped() -> None:
    """A pull would be local; the survey tells of all three."""
    survey = await finder_of(Probes()).survey(probed("a"))
    assert {"local": "", "nixl": "", "packed": ""} == told(survey)


async def test_what_is_impossible_has_its_reason() -> None:
    """Of each path its own; one does not keep the others from being probed."""
    errors = {"local": TransportFailed("on another host"), "nixl": PeerError("no answer")}
    survey = await finder_of(Probes(**errors)).survey(probed("a"))
    assert {"local": "on another host", "nixl": "no answer", "packed": ""} == told(survey)


@pytest.mark.parametrize(
    ("rule", "impossible"),
    [(PathRule.LOCAL, {"nixl", "packed"}), (PathRule.NIXL, {"packed"}), (PathRule.PACKED, set[str]())],
)
async def test_what_is_configured_away_is_impossible(rule: PathRule, impossible: set[str]) -> None:
    """A path that no read may take is not probed, and the configuration is the reason."""
    survey = told(await finder_of(Probes(), rule).survey(probed("a")))
    assert impossible == {path for path, why in survey.items() if why == f"path={rule} is configured"}


async def test_a_source_that_lets_nothing_be_read_has_no_path() -> None:
    """A source of an earlier release."""
    survey = await finder_of(Probes()).survey(make_peer("a"))
    assert {"the source offers nothing for probes to read"} == set(told(survey).values())


async def test_surveys_run_one_at_a_time_and_are_bounded() -> None:
    """They are answered in order; past the bound they are refused."""
    answered: asyncio.Queue[Survey] = asyncio.Queue()
    prober = Prober(finder_of(Probes()), RateBook(lambda _: None))
    for number in range(SURVEYS_MAX):
        prober.survey(probed(f"p{number}"), answered.put_nowait)
    with pytest.raises(ResourceExhausted, match=f"surveys={SURVEYS_MAX}"):
        prober.survey(probed("late"), answered.put_nowait)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(prober.run())
        for _ in range(SURVEYS_MAX):
            await answered.get()
        running.cancel()
    assert answered.empty()


async def test_a_survey_on_the_wire_has_a_route_or_a_reason() -> None:
    """Never both."""
    survey = await finder_of(Probes(local=TransportFailed("on another host"))).survey(probed("a"))
    wire = peer_surveyed_of("a", survey)
    assert [(False, "on another host"), (True, ""), (True, "")] == [
        (path.HasField("route"), path.refusal) for path in wire.paths
    ]
    assert wire.paths[1].route.gbytes_per_s == pytest.approx(PROBE_BYTES / 1e-3 / 1e9)
