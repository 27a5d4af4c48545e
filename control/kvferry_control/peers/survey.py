"""Finds out on which paths this worker's data planes can read a source, whatever a pull would take."""

import asyncio
from collections.abc import Sequence

from kvferry.core.errors import KvferryError, ResourceExhausted
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.worker.v1 import probe_pb2 as pb
from kvferry_control.peers.source import Source
from kvferry_control.peers.sources import Sources
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import WorkerRecord

SURVEY_S_MAX = 30.0
SURVEY_ANSWER_S = 10.0
"""A data plane probes three paths, of which each may take a second to fail, and lets others go first."""


class Surveyor:
    """Surveys one source at a time."""

    def __init__(self, sources: Sources, links: Sequence[RankLink]) -> None:
        self._sources = sources
        self._links = links
        self._running = False

    async def survey(
        self, record: WorkerRecord, time_s: float
    ) -> tuple[list[pb.RankPairProbe], Sequence[pb.RankSettings]]:
        """Probe every path between every two ranks; and what the source's environments set of their transports.

        Raises:
            ResourceExhausted: another survey runs.
            KvferryError: the source cannot be asked what it is.
        """
        if self._running:
            raise ResourceExhausted.of_bound("surveys", 1, "another one runs", retry_after_s=1.0)
        self._running = True
        try:
            source, settings = await self._sources.describe(record, time_s)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._by_rank(source, link)) for link in self._links]
        finally:
            self._running = False
        found = [probe for task in tasks for probe in task.result()]
        return sorted(found, key=lambda probe: (probe.source_rank, probe.destination_rank)), settings

    async def _by_rank(self, source: Source, link: RankLink) -> list[pb.RankPairProbe]:
        """What one data plane finds, source rank by source rank: it probes one at a time anyway."""
        return [await self._probe(source, link, access.rank) for access in source.access]

    async def _probe(self, source: Source, link: RankLink, source_rank: int) -> pb.RankPairProbe:
        probe = pb.RankPairProbe(source_rank=source_rank, destination_rank=link.rank)
        try:
            self._sources.connect(source, link)
            command = dp.SurveyPeer(peer=source.peer(source_rank))
            answer = await link.command(dp.SessionRequest(survey_peer=command), SURVEY_ANSWER_S)
        except KvferryError as error:
            probe.refusal = str(error)
        else:
            probe.paths.extend(answer.peer_surveyed.paths)
        return probe
