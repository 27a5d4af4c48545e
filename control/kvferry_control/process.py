"""The control process: owns all parts, wires them, and runs them in one task group."""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import structlog

from kvferry.core.checksums.shares import every_of
from kvferry.core.errors import KvferryError
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.ending import end_bounded
from kvferry.engine.v1.engine_pb2_grpc import add_EngineServiceServicer_to_server
from kvferry.logs import bind_identity
from kvferry.negotiation.v1.negotiation_pb2_grpc import add_NegotiationServiceServicer_to_server
from kvferry.publication.v1.publication_pb2_grpc import add_PublicationServiceServicer_to_server
from kvferry.rpc.health import HealthWatch
from kvferry.rpc.polling import Polling
from kvferry.transfer.v1.transfer_pb2_grpc import add_TransferServiceServicer_to_server
from kvferry.worker.v1.drain_pb2_grpc import add_DrainServiceServicer_to_server
from kvferry.worker.v1.probe_pb2_grpc import add_ProbeServiceServicer_to_server
from kvferry.worker.v1.worker_pb2_grpc import add_WorkerServiceServicer_to_server
from kvferry_control.cluster import Cluster
from kvferry_control.config import ControlConfig
from kvferry_control.drain import Drain
from kvferry_control.engine_lives import EngineLives
from kvferry_control.membership import Membership
from kvferry_control.metrics import ControlMetrics
from kvferry_control.peers.sources import Sources
from kvferry_control.peers.survey import Surveyor
from kvferry_control.publications.manager import Publication, Publications
from kvferry_control.ranks.link import RankLink
from kvferry_control.servers import Servers
from kvferry_control.services.creation import TransferMaker
from kvferry_control.services.drain import DrainService
from kvferry_control.services.engine import EngineService
from kvferry_control.services.negotiation import NegotiationService
from kvferry_control.services.probe import ProbeService
from kvferry_control.services.publication import PublicationService
from kvferry_control.services.pull_session import PullSession
from kvferry_control.services.transfer import TransferService
from kvferry_control.services.worker import WorkerService
from kvferry_control.tasks import Spawn, spawner
from kvferry_control.transfers.machine import Failure
from kvferry_control.transfers.manager import Transfers
from kvferry_control.vitals import open_health
from kvferry_control.worker import LocalWorker, new_identity

ATTESTED_TOGETHER_S = 0.25
TICK_S = 0.5
"""How often the worker's state is looked at for what no event tells: an engine gone silent."""

_ROUTER_SERVICES = (
    "kvferry.worker.v1.WorkerService",
    "kvferry.transfer.v1.TransferService",
    "kvferry.publication.v1.PublicationService",
    "kvferry.worker.v1.DrainService",
    "kvferry.worker.v1.ProbeService",
    "kvferry.negotiation.v1.NegotiationService",
)
_ENGINE_SERVICES = (*_ROUTER_SERVICES[:5], "kvferry.engine.v1.EngineService")


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that need the task group to be made."""

    publications: Publications
    transfers: Transfers
    maker: TransferMaker
    sources: Sources
    engine: EngineService
    membership: Membership
    drain: Drain


class ControlProcess:
    """One control. ``run`` returns after ``stop`` was called; a typed error from it ends the process."""

    def __init__(self, config: ControlConfig, servers: Servers | None = None) -> None:
        """``servers`` are those that the configuration names, unless they are given."""
        self._config = config
        self._metrics = ControlMetrics()
        passed = Polling(config.limits.poll_s).message_passed
        self._servers = servers or Servers(config.worker.listen, config.worker.engine_socket, passed)
        self._cluster = Cluster()
        self._links = [RankLink(rank, section.socket, self, passed) for rank, section in enumerate(config.ranks)]
        self._worker = LocalWorker(config, config.worker.advertise or self._servers.listen, self._links)
        self._opened: dict[int, dp.SessionOpened] = {}
        self._boots: dict[int, bytes] = {}
        self._established = False
        self._running = False
        self._watch: HealthWatch | None = None
        self._stopping = asyncio.Event()
        self._parts: Parts
        self._signal_count = 0
        self._telling = False
        self._shown_state: int | None = None
        self._log = structlog.get_logger("kvferry.control")

    @property
    def listen(self) -> str:
        """host:port that is served."""
        return self._servers.listen

    @property
    def metrics(self) -> ControlMetrics:
        """What is counted."""
        return self._metrics

    def signalled(self) -> None:
        """SIGTERM or SIGINT came: the first drains, the second ends what is left, the third waits for nothing."""
        self._signal_count += 1
        timeout_s = self._config.drain.timeout_s
        if not timeout_s or not self._running or self._signal_count > 2:
            self._stopping.set()
        elif self._signal_count == 1:
            self._parts.drain.begin(timeout_s, exits=True, by_signal=True)
        else:
            self._parts.drain.hurry()

    async def run(self, serving: Callable[[], None], ending: Callable[[], None] = lambda: None) -> None:
        """Serve until told to end; ``serving`` is called once when both servers answer, ``ending`` as they stop.

        Raises:
            KvferryError: the worker's name is taken, a data plane belongs to another worker, or etcd refuses us.
        """
        try:
            async with asyncio.TaskGroup() as group, end_bounded(ending):
                running = await self._start(group)
                self._watch = self._open_health()
                self._watch.start()
                self._running = True
                serving()
                await self._stopping.wait()
                self._log.info("control stops")
                ending()
                self._parts.drain.close()
                self._parts.transfers.books.keep()
                await self._servers.stop()
                await self._parts.membership.leave()
                # In here: the group does not end before the sessions with sources have.
                await self._parts.sources.close()
                for task in running:
                    task.cancel()
        finally:
            if self._watch is not None:
                self._watch.stop()
            await self._servers.stop()
            await self._parts.sources.close()

    async def _start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        spawn = spawner(group)
        self._parts = self._make_parts(spawn)
        self._add_services()
        running = [group.create_task(link.run(spawn)) for link in self._links]
        running.append(group.create_task(self._parts.membership.run()))
        running.append(group.create_task(self._tick()))
        await self._servers.start(_ROUTER_SERVICES, _ENGINE_SERVICES)
        self._log.info("control serves", listen=self.listen, engine_socket=str(self._servers.engine_socket))
        return running

    def _make_parts(self, spawn: Spawn) -> Parts:
        limits = self._config.limits
        publications = Publications(self._links, limits, self._metrics, spawn)
        sources = Sources(self._worker.name, self._links, spawn, self._worker.floor)
        sources.on_attested = self._attested
        transfers = Transfers(self._worker.name, self._links, sources, limits, self._metrics, spawn, self._cluster.find)
        compare_every = every_of("transfers.verify", self._config.transfers.verify)
        maker = TransferMaker(self._worker, transfers, limits, self._config.pull_timeout_s, compare_every)
        lives = EngineLives(transfers, self._links)
        engine = EngineService(
            self._worker,
            publications,
            partial(PullSession, maker, transfers, lives.is_gone),
            lives,
            self._config,
            self._busy,
            lambda: self._layout_replaced(spawn),
            self._servers.lanes,
        )
        drain = Drain(
            self._worker, publications, transfers, self._links, spawn, self._stopping.set, engine.draining_changed
        )

        def publication_ended(publication: Publication) -> None:
            engine.publication_ended(publication)
            drain.changed()

        publications.on_ended.append(publication_ended)
        membership = Membership(self._config, self._worker, self._cluster, self._metrics, self._registered, spawn)
        self._cluster.on_replaced = sources.workers_changed
        self._worker.on_change = self._worker_changed
        return Parts(publications, transfers, maker, sources, engine, membership, drain)

    def _add_services(self) -> None:
        parts, limits, tcp, uds = self._parts, self._config.limits, self._servers.tcp, self._servers.uds
        workers = WorkerService(self._cluster, limits)
        listed = PublicationService(parts.publications)
        probes = ProbeService(self._worker, self._cluster, Surveyor(parts.sources, self._links))
        for server in (tcp, uds):
            add_WorkerServiceServicer_to_server(workers, server)
            add_PublicationServiceServicer_to_server(listed, server)
            add_ProbeServiceServicer_to_server(probes, server)
        for server, for_engine in ((tcp, False), (uds, True)):
            service = TransferService(parts.maker, parts.transfers, limits, for_engine)
            add_TransferServiceServicer_to_server(service, server)
            allowed = for_engine or self._config.drain.remote
            add_DrainServiceServicer_to_server(DrainService(self._config, parts.drain, allowed), server)
        lanes = self._servers.lanes
        negotiation = NegotiationService(self._worker, parts.publications, self._links, self._metrics, lanes, limits)
        parts.engine.on_published = negotiation.announce
        # Readers first: whoever hears of the end from the engine may ask for the publication at once.
        parts.publications.on_ended.insert(0, negotiation.publication_ended)
        add_NegotiationServiceServicer_to_server(negotiation, tcp)
        add_EngineServiceServicer_to_server(parts.engine, uds)

    # What the links tell (LinkListener).

    async def link_up(self, link: RankLink, description: dp.DescribeResponse, opened: dp.SessionOpened) -> None:
        """A session with a data plane is in place."""
        self._opened[link.rank] = opened
        known, boot = self._boots.get(link.rank), description.access.boot_id
        self._boots[link.rank] = boot
        self._metrics.ranks_up.set(sum(other.up for other in self._links))
        self._parts.sources.link_up(link, is_new=known != boot)
        # At once: what it confirms next may be the end of one of these.
        self._parts.transfers.link_up(link, opened.transfers)
        if not self._established:
            if all(other.up for other in self._links):
                await self._establish()
        elif known != boot:
            await self._new_life(f"the data plane of rank {link.rank} was restarted", link.rank)
        else:
            await link.adopt(partial(self._worker.adoption, link.rank))
            self._parts.publications.link_up(link, opened.leases)
        if self._established:
            self._parts.engine.pool_changed(link)
        self._worker_changed()

    def link_down(self, link: RankLink) -> None:
        """A session broke."""
        self._metrics.ranks_up.set(sum(other.up for other in self._links))
        self._parts.transfers.link_down(link.rank)
        self._worker_changed()

    def link_gone(self, link: RankLink) -> None:
        """A data plane has died, and its pool with it."""
        self._parts.engine.pool_changed(link)

    def lease_ended(self, link: RankLink, event: dp.LeaseEnded) -> None:
        """A lease ran out."""
        self._parts.publications.lease_ended(link.rank, event)

    def read_finished(self, link: RankLink, event: dp.ReadFinished) -> None:
        """A read is over."""
        self._parts.transfers.read_finished(link.rank, event)

    def read_refused(self, link: RankLink, transfer: str, error: KvferryError) -> None:
        """A read was not taken."""
        self._parts.transfers.read_refused(link.rank, transfer, error)

    def peer_attested(self, link: RankLink, event: dp.PeerAttested) -> None:
        """What was found out about the ways to a source rank."""
        self._parts.sources.peer_attested(link.rank, event)

    def link_leaving(self, link: RankLink) -> None:
        """A data plane was told to end, or is back or gone since."""
        self._log.info("data plane leaves" if link.leaving else "data plane has left", rank=link.rank)
        self._parts.drain.leaving()

    # What follows from it.

    async def _establish(self) -> None:
        """All data planes are there for the first time: go on with the life they remember, or begin one."""
        adoptions = [link.description.adoption for link in self._links if link.description is not None]
        # Whoever knows our identity may ask for a publication: nothing else may run between these two.
        if self._worker.take_over(adoptions):
            held = {rank: list(opened.leases) for rank, opened in self._opened.items()}
            count = self._parts.publications.recover(held)
            self._log.info(
                "went on where an earlier control ended",
                incarnation=self._worker.identity.incarnation,
                publications=count,
            )
        await self._worker.adopt_ranks()
        for link in self._links:
            self._parts.publications.link_up(link, self._opened[link.rank].leases)
        self._established = True
        self._parts.membership.begin()

    async def _new_life(self, why: str, lost_rank: int | None = None) -> None:
        """Nothing published before can be read any more: take a new incarnation."""
        self._log.warning("the worker begins a new life", why=why, was=self._worker.identity.incarnation)
        self._parts.publications.end_all(why, lost_rank)
        self._parts.transfers.end_all(Failure(Reason.DATA_PLANE_LOST, why))
        self._worker.identity = new_identity()
        try:
            await self._worker.adopt_ranks()
        finally:
            # Also if a rank was lost meanwhile, which is adopted when it is back: the life has to be registered.
            self._parts.membership.begin()

    def _layout_replaced(self, spawn: Spawn) -> None:
        spawn(self._new_life("the engine came back with another layout"))

    async def _registered(self, incarnation: int) -> None:
        self._worker.identity = dataclasses.replace(self._worker.identity, incarnation=incarnation)
        self._metrics.incarnation.set(incarnation)
        bind_identity(incarnation=incarnation)
        self._parts.engine.registered()
        await self._worker.adopt_quietly()
        self._worker_changed()

    def _attested(self) -> None:
        """Let the cluster know what was attested; ranks that are probed one after the other make one change."""
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_later(ATTESTED_TOGETHER_S, self._tell_attested)

    def _tell_attested(self) -> None:
        self._telling = False
        attested = self._parts.sources.attested()
        self._metrics.show_attested(attested.values())
        self._worker.set_attested(attested)

    def _busy(self) -> bool:
        return bool(self._parts.publications.live_count or self._parts.transfers.table.active_count)

    def _worker_changed(self) -> None:
        self._parts.membership.update()

    async def _tick(self) -> None:
        while True:
            if self._worker.state != self._shown_state:
                self._shown_state = self._worker.state
                self._worker_changed()
            await asyncio.sleep(TICK_S)

    def _open_health(self) -> HealthWatch:
        loop = asyncio.get_running_loop()

        def missing() -> str | None:
            absent = [link.rank for link in self._links if not (link.up and self._established)]
            return f"the data planes of ranks {absent} are not there" if absent else None

        def on_change(states: Mapping[str, bool]) -> None:
            asyncio.run_coroutine_threadsafe(self._servers.show_health(states), loop)

        stall_s = self._config.health.stall_s
        return open_health(self._servers.health_socket, stall_s, self._parts.transfers, missing, on_change)
