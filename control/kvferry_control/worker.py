"""This worker: who it is, what it holds, and whether it can take work."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from kvferry.core.errors import ConfigInvalid, DataPlaneLost, Draining, KvferryError, LayoutInvalid, NotReady
from kvferry.core.handles import new_key
from kvferry.core.layouts import WorkerLayout, validate_layout
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.layout.v1 import layout_pb2 as layout_pb
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.rpc.layouts import layout_from_wire, layout_to_wire
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry.worker.v1.probe_pb2 import RankSettings
from kvferry_control.config import ControlConfig, Role
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import PROTOCOL_VERSION, RankInfo, WorkerRecord

_ROLES = {Role.PREFILL: pb.ROLE_PREFILL, Role.DECODE: pb.ROLE_DECODE, Role.BOTH: pb.ROLE_BOTH}


@dataclass(frozen=True, slots=True)
class Identity:
    """One life of this worker. ``incarnation`` is 0 until etcd has given one; ``handle_key`` is secret."""

    instance_id: bytes
    handle_key: bytes
    incarnation: int = 0

    def __repr__(self) -> str:
        return f"Identity(instance_id={self.instance_id.hex()}, incarnation={self.incarnation})"


def new_identity() -> Identity:
    """A fresh life."""
    return Identity(instance_id=secrets.token_bytes(16), handle_key=new_key())


class LocalWorker:
    """State of this worker that its services share. Changes go through its methods; ``on_change`` is told of each."""

    def __init__(self, config: ControlConfig, endpoint: str, links: Sequence[RankLink]) -> None:
        self.name = config.worker.name
        self.role = _ROLES[config.worker.role]
        self.endpoint = endpoint
        self.links = links
        self.identity = new_identity()
        self.layout: WorkerLayout | None = None
        self.floor = config.transfers.floor
        """What is demanded of the ways on which it pulls."""
        self._attested: Mapping[str, pb.AttestedSource] = {}
        self.draining = False
        self.drain_deadline: float | None = None
        """When what is left is ended, monotonic."""
        self.on_change: Callable[[], None] = lambda: None
        self._engine_timeout_s = config.limits.engine_timeout_s
        self._engine_seen = 0.0
        self._opening = asyncio.Lock()
        self._log = structlog.get_logger("kvferry.control.worker")

    @property
    def engine_alive(self) -> bool:
        """Whether the engine was heard of lately."""
        return time.monotonic() - self._engine_seen < self._engine_timeout_s

    @property
    def state(self) -> pb.WorkerState.ValueType:
        """Whether this worker can take work."""
        if self.draining:
            return pb.WORKER_STATE_DRAINING
        if self.layout is None or not self.identity.incarnation or not all(link.up for link in self.links):
            return pb.WORKER_STATE_STARTING
        return pb.WORKER_STATE_READY if self.engine_alive else pb.WORKER_STATE_ENGINE_LOST

    def heard_of_engine(self) -> None:
        """The engine gave a sign of life."""
        was_alive = self.engine_alive
        self._engine_seen = time.monotonic()
        if not was_alive:
            self.on_change()

    def set_draining(self, draining: bool) -> None:
        """Take no new work, or take work again; the cluster is told."""
        if draining != self.draining:
            self.draining = draining
            self.on_change()

    def set_attested(self, attested: Mapping[str, pb.AttestedSource]) -> None:
        """What was attested of other workers, by their names; the cluster is told."""
        self._attested = attested
        self.on_change()

    def require_mapped(self, mapped: Iterable[layout_pb.MappedPool]) -> None:
        """Refuse an engine that has mapped a pool of an earlier life of a data plane.

        Raises:
            DataPlaneLost: names the rank.
        """
        for pool in mapped:
            link = self.links[pool.rank] if pool.rank < len(self.links) else None
            known = link.description.access.boot_id if link is not None and link.description is not None else None
            if known is not None and pool.boot_id != known:
                raise DataPlaneLost(
                    f"rank {pool.rank}: its data plane was restarted; attach the pool again",
                    metadata={"rank": str(pool.rank)},
                )

    def require_ready(self) -> WorkerLayout:
        """The layout, once the worker can take new work.

        Raises:
            NotReady: says what is missing.
            Draining: it takes none any more.
        """
        if self.draining:
            raise Draining(f"workers/{self.name} is being drained")
        if not self.identity.incarnation:
            raise NotReady("etcd has not confirmed the registration yet")
        return self.require_layout()

    def require_layout(self) -> WorkerLayout:
        """The layout.

        Raises:
            NotReady: no engine has declared one.
        """
        if self.layout is None:
            raise NotReady("no engine has declared a layout yet")
        return self.layout

    def adoption(self, rank: int) -> dp.Adoption:
        """What a data plane is to remember of this worker."""
        return dp.Adoption(
            worker=self.name,
            instance_id=self.identity.instance_id,
            incarnation=self.identity.incarnation,
            handle_key=self.identity.handle_key,
            rank=rank,
            layout=layout_to_wire(self.layout) if self.layout is not None else None,
        )

    async def adopt_ranks(self) -> None:
        """Tell every data plane that is up whose it is.

        Raises:
            KvferryError: one refused, or was lost meanwhile.
        """
        for link in self.links:
            if link.up:
                await link.adopt(partial(self.adoption, link.rank))

    def take_over(self, adoptions: Sequence[dp.Adoption]) -> bool:
        """Go on with the life that all data planes remember. False if they do not agree on one.

        Raises:
            ConfigInvalid: a data plane belongs to another worker.
        """
        for link, adoption in zip(self.links, adoptions, strict=True):
            if adoption.worker not in ("", self.name):
                raise ConfigInvalid.of_field(
                    f"ranks[{link.rank}].socket", link.socket, f"this data plane belongs to worker {adoption.worker!r}"
                )
            if adoption.worker and adoption.rank != link.rank:
                raise ConfigInvalid.of_field(
                    f"ranks[{link.rank}].socket", link.socket, f"this data plane is rank {adoption.rank}"
                )
        first = adoptions[0]
        same = all(
            (a.instance_id, a.incarnation, a.layout) == (first.instance_id, first.incarnation, first.layout)
            for a in adoptions
        )
        if not first.worker or not first.incarnation or not same:
            return False
        self.identity = Identity(first.instance_id, first.handle_key, first.incarnation)
        self.layout = layout_from_wire(first.layout) if first.HasField("layout") else None
        return True

    async def declare_layout(self, layout: WorkerLayout, busy: Callable[[], bool]) -> bool:
        """Take the engine's layout. True if it replaced another one, so that a new life must begin.

        Raises:
            LayoutInvalid: it contradicts itself, leaves a pool, or differs from the one in use while ``busy``.
            NotReady: a data plane is missing.
        """
        async with self._opening:
            if layout == self.layout:
                return False
            missing = [link.rank for link in self.links if not link.up]
            if missing:
                raise NotReady(f"the data planes of ranks {missing} are not there yet")
            if len(layout.ranks) != len(self.links):
                raise LayoutInvalid.of_field("ranks", len(layout.ranks), f"this worker has {len(self.links)} ranks")
            validate_layout(layout, {access.rank: access.pool_bytes for access in self.access()})
            if self.layout is not None and busy():
                raise LayoutInvalid.of_field("layout", layout.model, "another layout is in use by live publications")
            replaced, self.layout = self.layout is not None, layout
            if not replaced:
                await self.adopt_ranks()
            self.on_change()
            return replaced

    def access(self) -> list[neg.RankAccess]:
        """How peers read every rank's memory, in order of ranks.

        Raises:
            NotReady: a data plane is missing.
        """
        found: list[neg.RankAccess] = []
        for link in self.links:
            if not link.up or link.description is None:
                raise NotReady(f"the data plane of rank {link.rank} is not there")
            access = neg.RankAccess()
            access.CopyFrom(link.description.access)
            access.rank = link.rank
            found.append(access)
        return found

    def settings(self) -> list[RankSettings]:
        """What the environments of the data planes set of their transports, in order of ranks."""
        return [
            RankSettings(
                rank=link.rank,
                settings={one.name: one.value for one in link.description.transport_settings if one.from_environment},
            )
            for link in self.links
            if link.description is not None
        ]

    def record(self) -> WorkerRecord:
        """What the cluster is told."""
        described = [(link.rank, link.description) for link in self.links if link.description is not None]
        return WorkerRecord(
            name=self.name,
            role=self.role,
            state=self.state,
            endpoint=self.endpoint,
            incarnation=self.identity.incarnation,
            instance_id=self.identity.instance_id,
            protocol_version=PROTOCOL_VERSION,
            layout=self.layout,
            ranks=tuple(_rank_info(rank, description) for rank, description in described),
            version=next((description.version for _, description in described), ""),
            floor=self.floor,
            attested=self._attested,
        )

    async def adopt_quietly(self) -> None:
        """As :meth:`adopt_ranks`; a rank that is lost meanwhile is adopted when it is back."""
        try:
            await self.adopt_ranks()
        except KvferryError as error:
            self._log.warning("a data plane could not be adopted", error=str(error))


def _rank_info(rank: int, description: dp.DescribeResponse) -> RankInfo:
    access = description.access
    return RankInfo(
        rank=rank,
        device=access.device,
        pool_bytes=access.pool_bytes,
        method=access.backend,
        method_version=description.transport_version,
        host_id=access.host_id,
        maps_same_host=description.maps_same_host,
    )
