"""Faults of processes: killed, at a stage of a transfer or at any time, and frozen."""

import asyncio
import contextlib
import time

from grpc import aio

from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry.transfer.v1.transfer_pb2_grpc import TransferServiceStub
from tests.chaos.faults import Fault, Scene, served_again
from tests.chaos.site import Managed
from tests.chaos.wire import EngineGone, PublishOrder, PullOrder

KINDS = ("engine", "control", "data plane")
SIDES = ("source", "destination")
STAGES = ("negotiating", "queued", "reading", "settling", "any")
AIM_TIMEOUT_S = 3.0
_PULL_S = 4.0
_TOKENS = 64 * 16
_STATES = {
    "negotiating": "TRANSFER_STATE_NEGOTIATING",
    "queued": "TRANSFER_STATE_READING",
    "reading": "TRANSFER_STATE_READING",
    "settling": "TRANSFER_STATE_SETTLING",
}


class Kill(Fault):
    """kill -9 of one process while a transfer of its worker is at a stage.

    The stage is reached by freezing who would end it: the source's control while it negotiates, the destination's data
    planes while they read (then the reads are queued in their sockets), the source's while NIXL reads from them, and
    for settling the destination's data planes and a cancellation. ``any`` kills while the load runs.
    """

    def __init__(self, kind: str, side: str, stage: str) -> None:
        self.target, self.side, self.stage = kind, side, stage
        self.name = f"kill -9 {side} {kind} while {stage}"
        self.kind = f"kill {kind}"
        self._killed: Managed | None = None
        self._killed_at = 0.0

    async def inject(self, scene: Scene) -> None:
        """Aim and kill."""
        site = scene.site
        source = scene.random.choice(site.sources)
        # NIXL alone stays in a read when its source is frozen.
        nixl = [name for name in site.destinations if "nixl" in site.stations[name].flags]
        destination = scene.random.choice(nixl if self.stage == "reading" and nixl else site.destinations)
        worker = source if self.side == "source" else destination
        self._killed = scene.random.choice(site.of(worker, self.target))
        if self.stage == "any":
            await self._kill()
            return
        held = self._holders(scene, source, destination)
        async with asyncio.TaskGroup() as tasks:
            order = await _published(scene, source)
            for managed in held:
                managed.pause()
            try:
                if order is not None:
                    tasks.create_task(scene.load.pull(destination, order))
                    await self._reached(scene, destination)
                await self._kill()
            finally:
                for managed in held:
                    managed.resume()

    async def last(self, scene: Scene) -> None:
        """It lasts until the supervisor has brought the process back."""

    async def heal(self, scene: Scene) -> None:
        """Wait for the supervisor."""
        assert self._killed is not None
        await served_again(self._killed, self._killed_at)

    async def _kill(self) -> None:
        assert self._killed is not None
        self._killed_at = time.monotonic()
        await self._killed.kill()

    def _holders(self, scene: Scene, source: str, destination: str) -> list[Managed]:
        if self.stage == "negotiating":
            return scene.site.of(source, "control")
        if self.stage == "reading" and "nixl" in scene.site.stations[destination].flags:
            return scene.site.of(source, "data plane")
        return scene.site.of(destination, "data plane")

    async def _reached(self, scene: Scene, destination: str) -> None:
        """Wait until a transfer is at the stage; if none gets there in time, kill all the same."""
        socket = scene.site.workers[destination].engine_socket
        wanted = pb.TransferState.Value(_STATES[self.stage])
        async with aio.insecure_channel(f"unix:{socket}") as channel:
            stub = TransferServiceStub(channel)
            with contextlib.suppress(TimeoutError, aio.AioRpcError):
                async with asyncio.timeout(AIM_TIMEOUT_S):
                    while True:
                        listed = await stub.ListTransfers(pb.ListTransfersRequest(page_size=200), timeout=1.0)
                        states = [transfer.state for transfer in listed.transfers]
                        if wanted in states:
                            return
                        if self.stage == "settling":
                            for shown in listed.transfers:
                                if shown.state == pb.TRANSFER_STATE_READING:
                                    await stub.CancelTransfer(pb.CancelTransferRequest(name=shown.name), timeout=0.1)
                        await asyncio.sleep(0.01)


class Freeze(Fault):
    """SIGSTOP of one process past every time-out, then SIGCONT."""

    def __init__(self, kind: str, side: str) -> None:
        self.target, self.side = kind, side
        self.name = f"SIGSTOP {side} {kind}"
        self.kind = f"stop {kind}"
        self._frozen: Managed | None = None

    async def inject(self, scene: Scene) -> None:
        """Freeze."""
        workers = scene.site.sources if self.side == "source" else scene.site.destinations
        self._frozen = scene.random.choice(scene.site.of(scene.random.choice(workers), self.target))
        self._frozen.pause()

    async def heal(self, scene: Scene) -> None:
        """Let it go on."""
        assert self._frozen is not None
        self._frozen.resume()


class RestartDecode(Fault):
    """A whole decode worker is killed with reads in flight, and comes back while its source still serves them."""

    name = "decode worker restarted with reads in flight"
    kind = "restart worker"

    def __init__(self) -> None:
        self._killed: list[Managed] = []
        self._killed_at = 0.0

    async def inject(self, scene: Scene) -> None:
        """Freeze the sources in the middle, kill the reader."""
        site = scene.site
        source, destination = scene.random.choice(site.sources), scene.random.choice(site.destinations)
        frozen = site.of(source, "data plane")
        self._killed = [managed for managed in site.processes.values() if managed.worker == destination]
        async with asyncio.TaskGroup() as tasks:
            order = await _published(scene, source)
            for managed in frozen:
                managed.pause()
            try:
                if order is not None:
                    tasks.create_task(scene.load.pull(destination, order))
                    await asyncio.sleep(0.2)
                self._killed_at = time.monotonic()
                for managed in self._killed:
                    await managed.kill()
            finally:
                for managed in frozen:
                    managed.resume()

    async def last(self, scene: Scene) -> None:
        """It lasts until the supervisor has brought all of it back."""

    async def heal(self, scene: Scene) -> None:
        """Wait for the supervisor."""
        for managed in self._killed:
            await served_again(managed, self._killed_at)


async def _published(scene: Scene, source: str) -> PullOrder | None:
    """A pull of a fresh publication."""
    seed = scene.random.getrandbits(48)
    engine = scene.site.engines.get(source)
    if engine is None:
        return None
    try:
        published = await engine.publish(PublishOrder(seed=seed, token_count=_TOKENS, ttl_s=_PULL_S, readers=0))
    except EngineGone:
        return None
    if not published.handle:
        return None
    return PullOrder(handle=published.handle, seed=seed, token_count=_TOKENS, timeout_s=_PULL_S)
