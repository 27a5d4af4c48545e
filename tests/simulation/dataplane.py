"""A simulated data-plane process: the real plane, desk, lease table, executor and service over simulated memory."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np

from kvferry.core.backends import Transport
from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion
from kvferry.core.errors import KvferryError
from kvferry.dataplane.v1 import dataplane_pb2 as pb, dataplane_pb2_grpc
from kvferry.device.native import CancelFlag
from kvferry.negotiation.v1.negotiation_pb2 import RankAccess
from kvferry.rpc.lanes import LANE_SOCKET_SUFFIX, LaneServer
from kvferry_dataplane.attestation.findings import Way
from kvferry_dataplane.attestation.prober import Prober, Survey
from kvferry_dataplane.attestation.rate_book import RateBook
from kvferry_dataplane.checksums.desk import Checksums
from kvferry_dataplane.checksums.threads import DigestThreads
from kvferry_dataplane.departure import Departure
from kvferry_dataplane.desk import ReadDesk
from kvferry_dataplane.metrics import Metrics
from kvferry_dataplane.paths import Path, Route
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.plane import Plane, PlaneMemory
from kvferry_dataplane.reads.executor import ReadExecutor
from kvferry_dataplane.reads.request import BatchLimits, ReadBounds, ReadOutcome, ReadPart, ReadRequest
from kvferry_dataplane.service import DataPlaneServicer
from tests.simulation.fabric import Fabric, Host, SimReadAgent
from tests.simulation.inbox import this_process
from tests.simulation.memory import WorkerMemory
from tests.simulation.rpc_server import SimServer

LEASE_SLOTS = 32
READS_MAX = 16
OUTSTANDING_BYTES_MAX = 1 << 16
POLL_SECONDS_MIN = 150e-6
POLL_SECONDS_MAX = 5e-3
DESTROY_SECONDS_MAX = 0.2
_NIXL = Route(Path.NIXL, Transport.NIXL_UCX.backend, "simulated")


class OneRoute:
    """Everything goes over NIXL. Implements ``Routing``."""

    def connect(self, peer: Peer) -> bool:
        """Learn a peer."""
        return True

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""

    def route(self, part: ReadPart) -> Route | None:
        """The path of a part."""
        return _NIXL

    def carried(self, part: ReadPart, route: Route, piece_count: int, seconds: float) -> None:
        """Nothing is learned."""

    def take_lost(self) -> list[Peer]:
        """Nobody is mapped."""
        return []


class SimReads:
    """What ``ReadThread`` is to a plane: commands for the executor, which runs at instants of its own."""

    def __init__(self, executor: ReadExecutor, seeded: random.Random) -> None:
        self.executor = executor
        self._seeded = seeded
        self._commands: list[Callable[[float], None]] = []
        self._next: asyncio.TimerHandle | None = None
        self._pause = POLL_SECONDS_MIN
        self._busy_until = 0.0

    def read(self, request: ReadRequest) -> None:
        """Queue a read: none is of mapped memory."""
        self.submit(request)

    def submit(self, request: ReadRequest) -> None:
        """Queue a read."""
        self._put(lambda _: self.executor.submit(request))

    def cancel(self, transfer: str) -> None:
        """End a read early."""
        self._put(lambda now: self.executor.cancel(transfer, now))

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""

        def try_connecting(_: float) -> None:
            # As the reads' thread does: every read of this peer tries again.
            with suppress(KvferryError):
                self.executor.connect(peer)

        self._put(try_connecting)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self._put(lambda now: self.executor.disconnect(peer, now))

    def destroys(self) -> None:
        """An agent is being destroyed, which takes a while."""
        now = asyncio.get_running_loop().time()
        self._busy_until = now + self._seeded.random() * DESTROY_SECONDS_MAX

    def _put(self, command: Callable[[float], None]) -> None:
        self._commands.append(command)
        self._pause = POLL_SECONDS_MIN
        self._wake_in(self._seeded.random() * POLL_SECONDS_MIN)

    def _wake_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._next is not None:
            self._next.cancel()
        self._next = loop.call_at(max(loop.time() + seconds, self._busy_until), self._run)

    def _run(self) -> None:
        now = asyncio.get_running_loop().time()
        commands, self._commands = self._commands, []
        for command in commands:
            command(now)
        before = self.executor.progress_count
        wait = self.executor.step(now)
        if wait == 0.0:
            moved = self.executor.progress_count != before
            self._pause = POLL_SECONDS_MIN if moved else min(2 * self._pause, POLL_SECONDS_MAX)
            wait = self._pause
        self._next = None
        if wait is not None:
            self._wake_in(wait)


class _Serving:
    """What ``ServingThread`` is to a plane: makes progress for readers as long as they are expected."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def expect(self, seconds: float) -> None:
        """Make progress for so long from now."""
        self._host.expected_until = asyncio.get_running_loop().time() + seconds


class _NothingToProbe:
    """Implements ``WayFinder``."""

    async def find(self, peer: Peer, until: float) -> tuple[list[Way], list[str]]:
        """No way is attested."""
        return [], ["the source offers nothing for probes to read"]

    async def survey(self, peer: Peer) -> Survey:
        """No path is attested."""
        return {}

    def forget_reports(self) -> None:
        """Nothing is said."""


class _Agent(SimReadAgent):
    def __init__(self, fabric: Fabric, own: Host, reads: Callable[[], SimReads]) -> None:
        super().__init__(fabric, own)
        self._reads = reads

    def close(self) -> None:
        super().close()
        self._reads().destroys()


@dataclass(eq=False)
class DataPlaneLife:
    """One life of a data plane. To be made by its process."""

    fabric: Fabric
    memory: WorkerMemory
    rank: int
    socket: str
    bounds: ReadBounds

    def __post_init__(self) -> None:
        seeded = self.fabric.seeded
        self.boot_id = seeded.randbytes(16)
        pool = np.zeros(self.memory.pool_bytes(self.rank), dtype=np.uint8)
        words = np.zeros(LEASE_SLOTS, dtype=np.uint64)
        self.memory.pools[self.rank] = pool
        self.host = Host(this_process(), self.rank, self.memory, pool, words)
        self.fabric.hosts[f"{self.boot_id.hex()}-serve"] = self.host
        self.metrics = Metrics()
        self.executor = ReadExecutor(
            lambda _: _Agent(self.fabric, self.host, lambda: self.reads),
            self._finished,
            OneRoute(),
            {},
            self.bounds,
            clock=asyncio.get_running_loop().time,
        )
        self.reads = SimReads(self.executor, seeded)
        self.desk = ReadDesk(READS_MAX, OUTSTANDING_BYTES_MAX)
        # The plane asks no more of the two threads than what these do.
        self.plane = Plane(
            PlaneMemory(words, pool.nbytes),
            self.desk,
            self.reads,  # type: ignore[arg-type]
            _Serving(self.host),  # type: ignore[arg-type]
            self.metrics,
            Departure(0.0),
            # Nothing here is summed: digests run on threads, which virtual time does not know.
            Checksums(DigestThreads(_no_digest, lambda: None, _raise), self.metrics, every=0, bytes_max=0),
            # No more are peers probed: no data plane here offers anything for that.
            Prober(_NothingToProbe(), RateBook(lambda _: None)),
        )

    async def run(self) -> None:
        """Serve until killed."""
        server = SimServer(self.fabric.network)
        lanes = LaneServer(FilePath(f"{self.socket}{LANE_SOCKET_SUFFIX}"))
        servicer = DataPlaneServicer(self.plane, self._describe(), self.metrics, lanes)
        dataplane_pb2_grpc.add_DataPlaneServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call, arg-type, unused-ignore]
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        await self.plane.reap_leases()

    def _finished(self, outcome: ReadOutcome) -> None:
        asyncio.get_running_loop().call_soon(self.plane.read_finished, outcome)

    def _describe(self) -> pb.DescribeResponse:
        access = RankAccess(
            device="cpu",
            boot_id=self.boot_id,
            agent_name=f"{self.boot_id.hex()}-serve",
            agent_metadata=self.boot_id,
            pool_address=1 << 40,
            pool_bytes=self.host.pool.nbytes,
            lease_table_address=1 << 50,
            lease_slot_count=LEASE_SLOTS,
            backend=Transport.NIXL_UCX.value,
        )
        return pb.DescribeResponse(access=access, pool_socket=f"{self.socket}.pool", version="simulated")


def _no_digest(region: DigestRegion, flag: CancelFlag) -> Words:
    raise AssertionError(f"a digest of {region} is asked for")


def _raise(defect: BaseException) -> None:
    raise defect


def small_bounds(seeded: random.Random) -> ReadBounds:
    """Bounds small enough that reads meet them."""
    return ReadBounds(
        transport=BatchLimits(seeded.choice((32, 128, 1 << 20)), seeded.choice((1, 4, 64)), 2),
        bytes_in_flight_per_peer=seeded.choice((64, 1 << 20)),
        active_reads_per_lane=seeded.choice((1, 2, 16)),
    )
