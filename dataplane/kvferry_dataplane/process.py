"""The data-plane process: makes its parts in order, serves, and takes them down in the opposite order."""

import asyncio
import gc
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path as FilePath

import numpy as np
import numpy.typing as npt
import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from kvferry.core.errors import AddressInUse
from kvferry.dataplane.v1 import dataplane_pb2 as pb, dataplane_pb2_grpc
from kvferry.device.copying import Window
from kvferry.device.memfd import SharedMemory, create_shared_memory
from kvferry.ending import bound_end, end_bounded
from kvferry.negotiation.v1.negotiation_pb2 import RankAccess
from kvferry.rpc.health import SOCKET_SUFFIX, status_of
from kvferry.rpc.lanes import LANE_SOCKET_SUFFIX, LaneServer
from kvferry.rpc.options import server_options
from kvferry.rpc.polling import Polling
from kvferry.rpc.socket_paths import claim_socket_path
from kvferry_dataplane.allocator import keep_freed_memory
from kvferry_dataplane.attestation.opening import open_attester
from kvferry_dataplane.attestation.rate_book import RateBook
from kvferry_dataplane.checksums.desk import Checksums
from kvferry_dataplane.checksums.pools import PoolDigester
from kvferry_dataplane.checksums.threads import DigestThreads
from kvferry_dataplane.config import Config, Listen
from kvferry_dataplane.copiers import Copiers
from kvferry_dataplane.departure import Departure
from kvferry_dataplane.description import describe, let_pack, let_probe
from kvferry_dataplane.desk import ReadDesk
from kvferry_dataplane.handoff import OfferSocket
from kvferry_dataplane.leases import WORD_BYTES, new_word
from kvferry_dataplane.metrics import Metrics
from kvferry_dataplane.packed.opening import (
    holds_chunks,
    open_cost_book,
    open_pack_server,
    open_packed_agent,
    open_staging,
)
from kvferry_dataplane.packed.staging import Staging
from kvferry_dataplane.packed.staging_agent import TransportStagingAgent
from kvferry_dataplane.paths import Path, SameHost
from kvferry_dataplane.plane import Plane, PlaneMemory
from kvferry_dataplane.pool import Pool, open_pool
from kvferry_dataplane.reads.agent import ReadAgent, TransportReadAgent
from kvferry_dataplane.reads.executor import ReadExecutor
from kvferry_dataplane.reads.lingering import LingeringConnections
from kvferry_dataplane.reads.mailbox import Mailbox
from kvferry_dataplane.reads.request import ReadOutcome
from kvferry_dataplane.reads.thread import ReadThread
from kvferry_dataplane.reads.unsafe import skips_rollover
from kvferry_dataplane.routes import Routes
from kvferry_dataplane.service import DataPlaneServicer
from kvferry_dataplane.serving import ServingThread
from kvferry_dataplane.sharing.agent import LocalAgent
from kvferry_dataplane.sharing.book import SharedSources
from kvferry_dataplane.sharing.host import host_id
from kvferry_dataplane.sharing.mapper import PoolMapper
from kvferry_dataplane.sharing.source import open_source
from kvferry_dataplane.transports.memory import Region
from kvferry_dataplane.transports.opening import open_library
from kvferry_dataplane.transports.transport import TransportLibrary
from kvferry_dataplane.vitals import open_health

BOOT_ID_BYTES = 16
POOL_SOCKET_SUFFIX = ".pool"
SHARE_SOCKET_SUFFIX = ".share"
ENGINES_MAX = 64
READERS_MAX = 1024
"""Data planes of this host that map this one's memory at a time."""
CHECKSUM_BYTES_MIN = 64 << 20
CHECKSUM_POOL_SHARE = 32
"""Checksums of what is published may take this part of the pool's size, and at least ``CHECKSUM_BYTES_MIN``."""
_SERVICE = pb.DESCRIPTOR.services_by_name["DataPlaneService"].full_name
_GRACE_SECONDS = 0.5
_log = structlog.get_logger("kvferry.dataplane")


class DataPlaneProcess:
    """Owner of everything in the process. Made and run on the event loop, once."""

    def __init__(self, config: Config, started_at: float) -> None:
        """``started_at`` is when the process began, on the monotonic clock, for the log."""
        self._config = config
        self._started_at = started_at
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._departure = Departure(config.drain_seconds)
        self._failed = asyncio.Event()
        self._defect: BaseException | None = None
        self._boot_id = secrets.token_bytes(BOOT_ID_BYTES)
        self._host_id = b"" if config.paths.same_host is SameHost.OFF else host_id()
        self._metrics = Metrics()
        self._lingering = LingeringConnections()
        self._rates = RateBook(self._on_slow)
        self._plane: Plane | None = None
        self._is_probe: Callable[[ReadOutcome], bool] = lambda _: False

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, and then for as long as control or what is held here needs it.

        Raises:
            OperatorError: the process cannot start: configuration, memory, sockets or transport.
            BaseException: the defect that ended one of the threads.
        """
        if not keep_freed_memory():
            _log.info("the C library's allocator cannot be told to keep memory; plans of many blocks take longer")
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._departure.signalled)
        control_path = claim_socket_path("socket", str(self._config.socket))
        pool_path = claim_socket_path("socket", str(self._config.socket), suffix=POOL_SOCKET_SUFFIX)
        share_path = claim_socket_path("socket", str(self._config.socket), suffix=SHARE_SOCKET_SUFFIX)
        lane_path = claim_socket_path("socket", str(self._config.socket), suffix=LANE_SOCKET_SUFFIX)
        lanes = LaneServer(lane_path, Polling(self._config.poll_seconds, self._may_poll).message_passed)
        async with AsyncExitStack() as parts, end_bounded():
            pool = open_pool(self._config.device, self._config.pool_bytes)
            parts.callback(pool.close)
            # Memory of its own, so that what peers may read is the words and nothing beside them.
            # One more than leases: the word of what probes read.
            table = create_shared_memory("kvferry-leases", (self._config.lease_slot_count + 1) * WORD_BYTES)
            plane, description = await self._start_plane(parts, pool, table)
            handoff = OfferSocket(pool_path, pool.offer(self._boot_id), "pool", ENGINES_MAX)
            parts.callback(handoff.close)
            description.pool_socket = str(pool_path.absolute())
            offers = [handoff, *self._share(parts, share_path, pool, table, description.access)]
            await lanes.start()
            parts.push_async_callback(lanes.close)
            await self._start_server(parts, control_path, DataPlaneServicer(plane, description, self._metrics, lanes))
            metrics_port = self._start_metrics(parts)
            async with asyncio.TaskGroup() as tasks:
                served = (plane.reap_leases(), plane.prober.run(), *(offer.serve() for offer in offers))
                running = [tasks.create_task(task) for task in served]
                self._say_ready(pool, metrics_port)
                await self._until_end(plane)
                _log.info("stopping")
                bound_end()
                plane.end_leases(tell=True)
                if self._defect is None:
                    await plane.end_reads()
                plane.outbox.end()
                for task in running:
                    task.cancel()
        _log.info("stopped")
        if self._defect is not None:
            raise self._defect

    def _may_poll(self) -> bool:
        return self._plane is not None and self._plane.threads_rest

    async def _until_end(self, plane: Plane) -> None:
        """Wait until the data plane may leave, or a thread has failed."""
        async with asyncio.TaskGroup() as tasks:
            ends = {tasks.create_task(self._departure.wait(plane)), tasks.create_task(self._until_failed())}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()

    async def _until_failed(self) -> None:
        await self._failed.wait()

    async def _start_plane(
        self, parts: AsyncExitStack, pool: Pool, table_memory: SharedMemory
    ) -> tuple[Plane, pb.DescribeResponse]:
        library = open_library(
            self._config.transport, for_cuda=pool.device != "cpu", ucx_library=self._config.ucx_library
        )
        _say_transport(library)
        words = np.frombuffer(table_memory.mapping, dtype=np.uint64)
        table = Region("DRAM", words.ctypes.data, words.nbytes)
        mailbox = Mailbox()
        parts.callback(mailbox.close)
        copiers = Copiers(self._config.copy_thread_count, self._config.sm_count_max, mailbox.descriptor)
        ends = [open_staging(pool, copiers) for _ in range(2)]
        for staging in ends:
            parts.callback(staging.close)
        parts.callback(copiers.close)
        slots = [_region_of(ends[1].memory)] if holds_chunks(self._config) else []
        boot = self._boot_id.hex()
        serving = ServingThread(library, f"{boot}-serve", [pool.memory, table, *slots], self._on_defect)
        serving.start(pool.make_current)
        parts.callback(serving.stop)
        executor = self._make_executor(library, pool, mailbox, copiers, ends[0])
        reads = ReadThread(executor, mailbox, self._on_defect)
        reads.start(pool.make_current)
        parts.push_async_callback(asyncio.to_thread, reads.stop)
        desk = ReadDesk(self._config.max_reads, self._config.max_outstanding_bytes)
        attester = open_attester(
            library, pool, self._boot_id, self._config.paths, self._lingering, self._rates, reads.submit, desk
        )
        parts.push_async_callback(asyncio.to_thread, attester.close)
        self._is_probe = attester.finished
        self._show_figures(pool, executor, ends)
        self._metrics.show_attestations(attester.prober)
        checksums = self._open_checksums(parts, pool)
        self._watched = desk, reads, serving, copiers
        memory = PlaneMemory(words[:-1], pool.region.size_bytes)
        self._plane = Plane(memory, desk, reads, serving, self._metrics, self._departure, checksums, attester.prober)
        words[-1] = new_word()
        description = describe(pool, self._boot_id, serving, table, library, self._config.paths)
        let_probe(description.access, words.size - 1, int(words[-1]))
        let_pack(description.access, self._start_packing(parts, pool, words, ends[1]), slots)
        return self._plane, description

    def _open_checksums(self, parts: AsyncExitStack, pool: Pool) -> Checksums:
        digester = PoolDigester(pool, self._config.copy_thread_count, self._config.sm_count_max)
        parts.callback(digester.close)
        threads = DigestThreads(digester.digest, pool.make_current, self._on_defect)
        parts.push_async_callback(threads.close)
        bytes_max = max(CHECKSUM_BYTES_MIN, pool.region.size_bytes // CHECKSUM_POOL_SHARE)
        return Checksums(threads, self._metrics, every=self._config.checksum_every, bytes_max=bytes_max)

    def _start_packing(self, parts: AsyncExitStack, pool: Pool, words: npt.NDArray[np.uint64], staging: Staging) -> str:
        """Pack for readers, if that is configured; returns where, or an empty string."""
        packing = open_pack_server(self._config, pool, self._boot_id, words, staging)
        if packing is None:
            return ""
        parts.push_async_callback(asyncio.to_thread, packing.server.close)
        self._metrics.packed_bytes.set_function(lambda: packing.server.sent_bytes)
        self._metrics.pack_connections.set_function(lambda: packing.server.connection_count)
        return packing.endpoint

    def _show_figures(self, pool: Pool, executor: ReadExecutor, ends: Sequence[Staging]) -> None:
        self._metrics.pool_bytes.set(pool.region.size_bytes)
        self._metrics.rollovers.set_function(lambda: executor.rollovers)
        self._metrics.reads_queued.set_function(lambda: executor.queued_count)
        self._metrics.queued_bytes.set_function(lambda: executor.queued_bytes)
        self._metrics.read_slots_held.set_function(lambda: ends[0].held_count)
        self._metrics.pack_slots_held.set_function(lambda: ends[1].held_count)

    def _make_executor(
        self,
        library: TransportLibrary,
        pool: Pool,
        mailbox: Mailbox,
        copiers: Copiers,
        staging: Staging,
    ) -> ReadExecutor:
        lingering = self._lingering
        boot = self._boot_id.hex()
        mapper = PoolMapper(pool, copiers)
        sources = SharedSources(self._config.paths, self._host_id, lambda peer: open_source(peer, mapper), mailbox)
        lasting: dict[Path, ReadAgent] = {
            Path.PACKED: open_packed_agent(
                self._config,
                pool,
                staging,
                mailbox.descriptor,
                lambda number: TransportStagingAgent(library, f"{boot}-pack-{number}", staging.memory, lingering),
            ),
            Path.LOCAL: LocalAgent(sources, mapper.close),
        }
        return ReadExecutor(
            lambda number: TransportReadAgent(library, f"{boot}-read-{number}", pool.memory, lingering),
            self._on_read_finished,
            Routes(self._config.paths, self._config.transport, sources, open_cost_book(), self._rates),
            lasting,
            unsafe_skip_rollover=skips_rollover(os.environ),
        )

    def _share(
        self, parts: AsyncExitStack, path: FilePath, pool: Pool, table: SharedMemory, access: RankAccess
    ) -> list[OfferSocket]:
        """Show the pool and the lease table to the data planes of this host, unless that is off."""
        if self._config.paths.same_host is SameHost.OFF:
            return []
        offer = pool.share(self._boot_id, table)
        for descriptor in offer.descriptors:
            parts.callback(os.close, descriptor)
        sharing = OfferSocket(path, offer, "share", READERS_MAX)
        parts.callback(sharing.close)
        access.share_socket = str(path.absolute())
        access.host_id = self._host_id
        return [sharing]

    async def _start_server(self, parts: AsyncExitStack, path: FilePath, servicer: DataPlaneServicer) -> None:
        server = aio.server(options=server_options())
        dataplane_pb2_grpc.add_DataPlaneServiceServicer_to_server(servicer, server)
        status = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        previous = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise AddressInUse.of_field("socket", str(path), str(error)) from error
        finally:
            os.umask(previous)
        await server.start()
        parts.callback(path.unlink, missing_ok=True)
        parts.push_async_callback(server.stop, _GRACE_SECONDS)
        parts.push_async_callback(status.enter_graceful_shutdown)

        def on_health(states: Mapping[str, bool]) -> None:
            asyncio.run_coroutine_threadsafe(show(states), self._loop)

        async def show(states: Mapping[str, bool]) -> None:
            for name, serving in states.items():
                await status.set(name, status_of(serving))

        health_path = claim_socket_path("socket", str(path), suffix=SOCKET_SUFFIX)
        watch = open_health(health_path, _SERVICE, self._config.stall_seconds, self._watched, on_health)
        parts.callback(watch.stop)
        watch.start()

    def _start_metrics(self, parts: AsyncExitStack) -> int | None:
        listen = self._config.metrics_listen
        if listen is None:
            return None
        try:
            server, _ = start_http_server(listen.port, listen.host, self._metrics.registry)
        except OSError as error:
            raise _listen_failed(listen, error) from error
        parts.callback(server.server_close)
        parts.callback(server.shutdown)
        return int(server.server_port)

    def _say_ready(self, pool: Pool, metrics_port: int | None) -> None:
        # What lives as long as the process need not be looked at again and again: a full collection takes tens of ms.
        gc.collect()
        gc.freeze()
        _log.info(
            "ready",
            device=pool.device,
            pool_bytes=pool.region.size_bytes,
            huge_page_bytes=pool.huge_page_bytes,
            huge_page_refusal=pool.huge_page_refusal,
            socket=str(self._config.socket),
            metrics_port=metrics_port,
            lease_slot_count=self._config.lease_slot_count,
            boot_id=self._boot_id.hex(),
            start_seconds=round(time.monotonic() - self._started_at, 3),
        )
        if self._config.ready_fd is not None:
            with os.fdopen(self._config.ready_fd, "w") as ready:
                ready.write("ready\n")

    def _on_read_finished(self, outcome: ReadOutcome) -> None:
        """Called on the reads' thread, and on the loop's where that read at once."""
        if threading.get_ident() == self._thread:
            self._read_finished(outcome)
        else:
            self._loop.call_soon_threadsafe(self._read_finished, outcome)

    def _read_finished(self, outcome: ReadOutcome) -> None:
        assert self._plane is not None
        if not self._is_probe(outcome):
            self._plane.read_finished(outcome)

    def _on_slow(self, peer: str) -> None:
        """Called on the reader thread."""
        assert self._plane is not None
        self._loop.call_soon_threadsafe(self._plane.prober.slow, peer)

    def _on_defect(self, defect: BaseException) -> None:
        """Called on a thread that ends by a defect: what it guarded cannot be guarded any more, so the process ends."""
        self._defect = defect
        self._loop.call_soon_threadsafe(self._failed.set)


def _say_transport(library: TransportLibrary) -> None:
    chosen = {setting.name: setting.value for setting in library.settings if not setting.from_user}
    given = {setting.name: setting.value for setting in library.settings if setting.from_user}
    name, release = library.transport, library.version
    _log.info("transport", transport=name, version=release, settings=chosen, settings_of_user=given)


def _region_of(memory: Window) -> Region:
    return Region("DRAM", memory.address, memory.size_bytes)


def _listen_failed(listen: Listen, error: OSError) -> AddressInUse:
    return AddressInUse.of_field("metrics_listen", f"{listen.host}:{listen.port}", error.strerror or "cannot listen")
