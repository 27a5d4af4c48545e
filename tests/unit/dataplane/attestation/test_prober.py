"""Peers are attested one at a time, once, and again when they are slow."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np

from kvferry_dataplane.attestation.findings import Attestation, Seconds, Way
from kvferry_dataplane.attestation.pattern import PROBE_BYTES, pattern_of
from kvferry_dataplane.attestation.plans import AGAIN_WITHIN_SECONDS, FIRST_WITHIN_SECONDS, LARGE, LATENCY, SMALL
from kvferry_dataplane.attestation.prober import Prober, Survey
from kvferry_dataplane.attestation.rate_book import RateBook
from kvferry_dataplane.paths import Path
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.transports.transport import TransportUse
from tests.unit.dataplane.fakes import peer as make_peer

WAY = Way(Path.NIXL, "UCX", TransportUse("tcp", "eth0", ""), Seconds(1e-4, 1e-3, 2e-3))


def slower(factor: float) -> Way:
    """The same way, so many times as slow."""
    return replace(WAY, seconds=Seconds(*(factor * s for s in (1e-4, 1e-3, 2e-3))))


class Finder:
    """Finds what it is told to find, when it is let."""

    def __init__(self, *found: tuple[list[Way], list[str]]) -> None:
        self.found = list(found)
        self.asked: list[str] = []
        self.let = asyncio.Event()
        self.let.set()

    async def find(self, peer: Peer, until: float) -> tuple[list[Way], list[str]]:
        """The next of what was told, of the last one for ever."""
        self.asked.append(peer.name)
        self.until = until
        await self.let.wait()
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]

    async def survey(self, peer: Peer) -> Survey:
        """Nobody asks here."""
        raise NotImplementedError(peer.name)

    def forget_reports(self) -> None:
        """Nothing is said."""


@asynccontextmanager
async def running(finder: Finder) -> AsyncIterator[tuple[Prober, "asyncio.Queue[tuple[str, Attestation]]"]]:
    """A prober that runs, and what it tells."""
    told: asyncio.Queue[tuple[str, Attestation]] = asyncio.Queue()
    prober = Prober(finder, RateBook(lambda _: None))
    prober.on_attested = lambda name, found: told.put_nowait((name, found))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(prober.run())
        yield prober, told
        task.cancel()


async def test_a_peer_is_probed_once_and_then_told_of() -> None:
    """Telling of a peer again gives what is known; asking for a probe gives another."""
    finder = Finder(([WAY], []))
    async with running(finder) as (prober, told):
        prober.connect(make_peer("a"))
        name, found = await told.get()
        assert ("a", [WAY.path]) == (name, [way.path for way in found.ways])
        prober.connect(make_peer("a"))
        assert ("a", found) == await told.get()
        assert ["a"] == finder.asked
        prober.connect(make_peer("a"), again=True)
        await told.get()
        assert ["a", "a"] == finder.asked


async def test_what_could_not_be_attested_is_tried_when_it_is_told_of_again() -> None:
    """A refusal is told, and does not last."""
    async with running(Finder(([], ["no answer"]), ([WAY], []))) as (prober, told):
        prober.connect(make_peer("a"))
        assert ("no answer",) == (await told.get())[1].refusals
        assert 0 == prober.attested_count()
        prober.connect(make_peer("a"))
        assert () == (await told.get())[1].refusals
        assert 1 == prober.attested_count()


async def test_a_peer_that_leaves_meanwhile_is_not_told_of() -> None:
    """What was found of a peer that is gone by then is dropped; the next one has its turn."""
    finder = Finder(([WAY], []))
    finder.let.clear()
    async with running(finder) as (prober, told):
        prober.connect(make_peer("a"))
        prober.connect(make_peer("b"))
        prober.disconnect(make_peer("a"))
        finder.let.set()
        assert "b" == (await told.get())[0]
        assert told.empty()


async def test_a_way_that_lost_its_rate_is_degraded_until_it_has_it_again() -> None:
    """Probes say what has become of a way that reads have found slow."""
    finder = Finder(([WAY], []), ([slower(3)], []), ([slower(1.8)], []), ([slower(1.2)], []))
    async with running(finder) as (prober, told):
        prober.connect(make_peer("a"))
        await told.get()
        for degraded in (True, True, False):
            prober.slow("a")
            (way,) = (await told.get())[1].ways
            assert degraded is way.degraded
            assert way.best_gbytes_per_s == WAY.gbytes_per_s
            assert int(degraded) == prober.degraded_count()


async def test_a_source_is_probed_while_it_makes_progress() -> None:
    """A new reader has some seconds, one that has just read less than one."""
    finder = Finder(([WAY], []))
    async with running(finder) as (prober, told):
        prober.connect(make_peer("a"))
        await told.get()
        assert 1.0 < finder.until - time.monotonic() <= FIRST_WITHIN_SECONDS
        prober.slow("a")
        await told.get()
        assert finder.until - time.monotonic() <= AGAIN_WITHIN_SECONDS


async def test_nobody_is_probed_whom_nobody_knows() -> None:
    """A slow read that ends after its peer has left probes nobody."""
    finder = Finder(([WAY], []))
    async with running(finder) as (prober, told):
        prober.slow("gone")
        prober.connect(make_peer("a"))
        await told.get()
    assert ["a"] == finder.asked


def test_every_piece_has_its_place() -> None:
    """Plans copy every byte of the pattern once, in pieces that cannot be joined, and one wrong byte is found."""
    pattern = pattern_of(b"b" * 16)
    assert PROBE_BYTES == pattern.size
    assert not np.array_equal(pattern, pattern_of(b"c" * 16))
    for plan in (LATENCY, LARGE, SMALL):
        copies = plan.copies(0, 0)
        scratch = np.zeros(PROBE_BYTES, dtype=np.uint8)
        for source, destination, length in zip(*_lists(copies), strict=True):
            scratch[destination : destination + length] = pattern[source : source + length]
        assert plan.arrived(scratch, pattern)
        scratch[plan.total_bytes - 1] ^= 1
        assert not plan.arrived(scratch, pattern)
        touching = np.diff(copies.destination_offsets) == copies.lengths[:-1]
        assert not touching.any()


def _lists(copies: object) -> list[list[int]]:
    return [getattr(copies, name).tolist() for name in ("source_offsets", "destination_offsets", "lengths")]
