"""Starts real data planes and speaks to them as a control does."""

import asyncio
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from kvferry.core.dense import HND, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.dataplane.v1 import dataplane_pb2 as pb, dataplane_pb2_grpc
from kvferry.device.descriptors import receive_offer
from kvferry.device.memfd import map_shared_memory
from kvferry.layout.v1.layout_pb2 import BlockList
from kvferry.negotiation.v1.negotiation_pb2 import RankLease
from kvferry.rpc.layouts import layout_to_wire
from kvferry.rpc.options import channel_options

POOL_BYTES = 64 << 20
ANSWER_SECONDS = 20.0


def small_layout(block_count: int = 64) -> WorkerLayout:
    """2 layers, K and V, 2 heads of 64, 16 tokens, 2 bytes: 16 KiB a block, in 4 runs of 4 KiB."""
    model = DenseModel("model", 2, 2, 64, 16, ElementType.BFLOAT16)
    return dense_layout(model, block_count, order=HND)


def large_layout(block_count: int = 56) -> WorkerLayout:
    """1 MiB a block, in 2 runs: enough bytes that a read over sockets stalls when its source stops."""
    model = DenseModel("model", 1, 8, 128, 256, ElementType.BFLOAT16)
    return dense_layout(model, block_count, order=HND)


async def until(condition: Callable[[], bool], bound: float = 10.0) -> None:
    """Wait until a condition holds, asked again every few milliseconds."""
    async with asyncio.timeout(bound):
        while not condition():  # noqa: ASYNC110 - what is waited for lies in another process
            await asyncio.sleep(0.002)


def seconds(value: float) -> Duration:
    """A wire duration."""
    return Duration(seconds=int(value), nanos=int((value - int(value)) * 1e9))


def blocks(ids: list[int]) -> list[BlockList]:
    """Block ids of the one group that the layouts here have."""
    return [BlockList(group="full", block_ids=ids)]


class Session:
    """One control's session with a data plane."""

    def __init__(self, call: aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]) -> None:
        self._call = call
        self._next_id = 1
        self.events: list[pb.SessionResponse] = []
        self.opened = pb.SessionOpened()

    async def send(self, **command: object) -> int:
        """Send a command without waiting for its answer; returns its id."""
        command_id = self._next_id
        self._next_id += 1
        await self._call.write(pb.SessionRequest(command_id=command_id, **command))  # type: ignore[arg-type]
        return command_id

    async def event(self, wanted: Callable[[pb.SessionResponse], bool]) -> pb.SessionResponse:
        """The first event, already here or yet to come, that is wanted; it is taken out."""
        async with asyncio.timeout(ANSWER_SECONDS):
            for index, event in enumerate(self.events):
                if wanted(event):
                    return self.events.pop(index)
            while True:
                read = await self._call.read()
                assert isinstance(read, pb.SessionResponse), "the session ended"
                if wanted(read):
                    return read
                self.events.append(read)

    async def ask(self, **command: object) -> pb.SessionResponse:
        """Send a command and wait for its answer."""
        command_id = await self.send(**command)
        return await self.event(lambda event: event.command_id == command_id)

    async def finished(self, transfer: str) -> pb.ReadFinished:
        """How a read ended."""
        event = await self.event(
            lambda event: event.WhichOneof("event") == "read_finished" and event.read_finished.transfer == transfer
        )
        return event.read_finished

    async def acquire(self, publication: str, ids: list[int], ttl: float = 60.0) -> RankLease:
        """Pin blocks, expecting that it works."""
        command = pb.AcquireLease(publication=publication, blocks=blocks(ids), ttl=seconds(ttl), attributes=b"mine")
        event = await self.ask(acquire_lease=command)
        assert event.WhichOneof("event") == "lease_granted", event
        lease = RankLease()
        lease.CopyFrom(event.lease_granted.lease)
        return lease

    async def ended(self) -> bool:
        """Whether the data plane ended the session, once it has."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                if not isinstance(await self._call.read(), pb.SessionResponse):
                    return True

    async def close(self) -> None:
        """Disconnect."""
        self._call.cancel()


class DataPlane:
    """A data-plane process and a client of it."""

    def __init__(
        self, folder: Path, name: str, environment: dict[str, str], *flags: str, launcher: tuple[str, ...] = ()
    ) -> None:
        """``launcher``: a program with arguments that runs what follows it in another place."""
        self.socket = folder / f"{name}.sock"
        self.log_path = folder / f"{name}.log"
        ready_read, ready_write = os.pipe()
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(  # noqa: S603 - the interpreter of this test
                [
                    *launcher,
                    *(sys.executable, "-m", "kvferry_dataplane", "--pool-bytes", str(POOL_BYTES)),
                    *("--socket", str(self.socket), "--ready-fd", str(ready_write)),
                    *("--drain-timeout", "0", *flags),
                ],
                stderr=log,
                pass_fds=[ready_write],
                env={**os.environ, **environment},
            )
        os.close(ready_write)
        with os.fdopen(ready_read) as ready:
            assert ready.read() == "ready\n", self.log()
        self.channel: aio.Channel | None = None
        self._mapping: mmap.mmap | None = None

    async def connect(self, layout: WorkerLayout | None = None, rank: int = 0) -> None:
        """Open the channel, and adopt the data plane as a rank if a layout is given."""
        self.channel = aio.insecure_channel(f"unix:{self.socket}", options=channel_options())
        self.stub = dataplane_pb2_grpc.DataPlaneServiceStub(self.channel)
        if layout is not None:
            await self.adopt(layout, rank=rank)

    async def adopt(
        self, layout: WorkerLayout, instance: bytes = b"i" * 16, incarnation: int = 7, rank: int = 0
    ) -> None:
        """Take the data plane for a worker."""
        self.layout, self.rank = layout, rank
        adoption = pb.Adoption(
            worker=self.socket.stem,
            instance_id=instance,
            incarnation=incarnation,
            handle_key=b"k" * 32,
            rank=rank,
            layout=layout_to_wire(layout),
        )
        await self.stub.Adopt(pb.AdoptRequest(adoption=adoption))

    async def session(self) -> Session:
        """A new session, opened."""
        session = Session(self.stub.Session())
        first = await session.event(lambda _: True)
        assert first.WhichOneof("event") == "opened"
        session.opened = first.opened
        return session

    async def as_peer(self) -> pb.ConnectPeer:
        """How another data plane learns this one."""
        described = await self.stub.Describe(pb.DescribeRequest())
        return pb.ConnectPeer(
            peer=described.access.boot_id.hex(), access=described.access, layout=layout_to_wire(self.layout)
        )

    def pool_offer(self) -> tuple[pb.PoolOffer, list[int]]:
        """What an engine gets to map the pool."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(f"{self.socket}.pool")
            message, descriptors = receive_offer(connection)
        return pb.PoolOffer.FromString(message), list(descriptors)

    def pool(self) -> npt.NDArray[np.uint8]:
        """The bytes of a pool in host memory, mapped as an engine maps them."""
        if self._mapping is None:
            offer, (descriptor,) = self.pool_offer()
            self._mapping = map_shared_memory(descriptor, offer.pool_bytes)
            os.close(descriptor)
        return np.frombuffer(self._mapping, dtype=np.uint8)

    def block_bytes(self, ids: list[int], pool: npt.NDArray[np.uint8] | None = None) -> bytes:
        """The bytes of blocks, one after the other, axis by axis, read straight from the mapping or a copy of it."""
        pool = self.pool() if pool is None else pool
        placement = self.layout.ranks[0].placements[0]
        group = self.layout.groups[0]
        view = np.lib.stride_tricks.as_strided(
            pool[placement.base_bytes :].view(np.uint16),
            shape=(
                placement.block_count,
                len(placement.layers),
                group.kv_factor,
                len(placement.heads),
                group.tokens_per_block,
                group.head_dim,
            ),
            strides=placement.strides,
        )
        return np.ascontiguousarray(view[ids]).tobytes()

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def log(self) -> str:
        """What it has logged; nothing where the log is a device without end."""
        return self.log_path.read_text() if self.log_path.is_file() else ""

    async def close(self) -> None:
        """End the process, whatever state it is in."""
        if self.channel is not None:
            await self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                await asyncio.to_thread(self.process.wait, 10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


async def lease_of(source: DataPlane, ids: list[int]) -> RankLease:
    """A lease on blocks, taken in a session of its own."""
    session = await source.session()
    lease = await session.acquire("p", ids)
    await session.close()
    return lease


def read_command(
    transfer: str,
    peer: pb.ConnectPeer,
    lease: RankLease,
    source: list[int],
    destination: list[int],
    time_left: float = 15.0,
) -> pb.Read:
    """A read from one source."""
    return pb.Read(
        transfer=transfer,
        sources=[pb.ReadSource(peer=peer.peer, blocks=blocks(source), lease=lease)],
        destination_blocks=blocks(destination),
        time_left=seconds(time_left),
    )
