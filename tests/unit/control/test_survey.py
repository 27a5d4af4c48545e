"""Surveys of a source: one at a time, and what some ranks cannot tell keeps nobody from telling the rest."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvferry.core.errors import DataPlaneLost, KvferryError, ResourceExhausted
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.transfer.v1 import transfer_pb2
from kvferry.worker.v1 import probe_pb2 as pb
from kvferry_control.peers.survey import Surveyor


@dataclass
class Access:
    """A source's rank."""

    rank: int


@dataclass
class Source:
    """A source of two ranks."""

    access: tuple[Access, ...] = (Access(0), Access(1))

    def peer(self, rank: int) -> str:
        """Its name."""
        return f"source/{rank}"


@dataclass
class Sources:
    """Describes the source when it is let."""

    let: asyncio.Event = field(default_factory=asyncio.Event)
    connected: list[int] = field(default_factory=list)

    async def describe(self, record: object, time_s: float) -> tuple[Source, list[pb.RankSettings]]:
        """The source and its settings."""
        await self.let.wait()
        return Source(), [pb.RankSettings(rank=0, settings={"UCX_TLS": "tcp"})]

    def connect(self, source: Source, link: "Link") -> None:
        """Note who is told of it."""
        self.connected.append(link.rank)


@dataclass
class Link:
    """A data plane that answers, or fails."""

    rank: int
    error: KvferryError | None = None

    async def command(self, request: dp.SessionRequest, timeout_s: float) -> dp.SessionResponse:
        """What is found out."""
        if self.error is not None:
            raise self.error
        path = pb.ProbedPath(path=transfer_pb2.PATH_LOCAL, refusal=request.survey_peer.peer)
        return dp.SessionResponse(peer_surveyed=dp.PeerSurveyed(paths=[path]))


def surveyor_of(sources: Sources, *links: Link) -> Surveyor:
    """One over fakes."""
    given: Any = (sources, links)
    return Surveyor(*given)


async def test_all_ranks_are_probed_in_order_and_failures_are_told() -> None:
    """A data plane that is lost is told as such between its pairs of ranks only."""
    sources = Sources()
    sources.let.set()
    surveyor = surveyor_of(sources, Link(0), Link(1, DataPlaneLost("rank 1: no session")))
    record: Any = None
    probes, settings = await surveyor.survey(record, 1.0)
    found = [(probe.source_rank, probe.destination_rank, probe.refusal) for probe in probes]
    lost = "DATA_PLANE_LOST: rank 1: no session"
    assert [(0, 0, ""), (0, 1, lost), (1, 0, ""), (1, 1, lost)] == found
    assert ["source/0", "source/1"] == [path.refusal for probe in probes for path in probe.paths]
    assert {"UCX_TLS": "tcp"} == dict(settings[0].settings)


async def test_a_second_survey_is_refused_while_one_runs() -> None:
    """And taken when it is over, also when that failed."""
    sources = Sources()
    surveyor = surveyor_of(sources, Link(0))
    record: Any = None
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(surveyor.survey(record, 1.0))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="surveys=1"):
            await surveyor.survey(record, 1.0)
        first.cancel()
    sources.let.set()
    probes, _ = await surveyor.survey(record, 1.0)
    assert 2 == len(probes)
