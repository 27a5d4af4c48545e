"""A simulated engine: the real SDK client, publishing and pulling at random, strict about whose blocks are whose.

What it knows of its blocks outlives it, as a journal would: a restarted engine leaves alone what may still be in use.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from kvferry.core.errors import KvferryError, NotFound
from kvferry.core.reasons import Reason
from kvferry.publication.v1.publication_pb2 import LeaseAttributes
from kvferry.sdk.calls import is_outcome_unknown
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.events import EngineEvent, PublicationEnded
from kvferry.sdk.failures import PullFailed
from kvferry.sdk.pulls import Pull
from kvferry.sdk.results import Publication, TransferResult
from tests.simulation.attaching import attach
from tests.simulation.dataplane import DataPlaneLife
from tests.simulation.fabric import Host
from tests.simulation.memory import GROUP, Bytes, Published, Use, WorkerMemory
from tests.simulation.router import Handle, Router
from tests.simulation.trace import Trace

CALL_S = 4.0
SETTLE_S = 10.0
"""How long an engine asks whether nothing can still arrive of a pull that ended without saying so."""
REUSE_MARGIN_S = 2.0
"""After its deadline a transfer of unknown fate is left alone for so long; then its blocks may be read into again."""


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine does. Times in seconds."""

    publishes: bool
    pulls: bool
    pause_s: float
    ttl_s: tuple[float, ...]
    timeout_s: tuple[float, ...]
    cancel_chance: float
    release_chance: float
    blocks_max: int = 3


@dataclass(eq=False)
class EngineJournal:
    """What an engine knows of its blocks, over its restarts."""

    memory: WorkerMemory
    pinned: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Blocks of the publications that have not ended, by name."""
    asking: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    """Blocks of publications that control was asked for, by request id, and until when they may be pinned."""
    words: dict[str, list[tuple[Host, int, int]]] = field(default_factory=dict)
    """Where each publication's lease words were written, and what they were."""
    requests: dict[str, str] = field(default_factory=dict)
    """By name of a publication, the request that made it."""
    lost: list[tuple[tuple[int, ...], float]] = field(default_factory=list)
    """Blocks of pulls of unknown fate, and when they may be read into again."""
    pulling: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    request_count: int = 0


@dataclass(eq=False)
class EngineLife:
    """One life of an engine. To be made by its process."""

    journal: EngineJournal
    socket: str
    load: Load
    router: Router
    seeded: random.Random
    trace: Trace
    violation: Callable[[str], None]
    planes: Mapping[int, DataPlaneLife]
    """The worker's data planes, by rank, as they live: to check them, not to use them."""
    active: Callable[[], bool]
    """Whether new work shall be begun."""

    def __post_init__(self) -> None:
        self._memory = self.journal.memory
        self._name = f"{self._memory.worker}/engine"
        self.client: EngineClient | None = None
        self._content = random.Random(self.seeded.getrandbits(64))

    async def run(self) -> None:
        """Work until killed."""
        while True:
            client = EngineClient.connect(
                self.socket, self._memory.worker, self._memory.layout, call_timeout_s=CALL_S, on_event=self._on_event
            )
            try:
                async with client:
                    self.client = client
                    await self._work()
            except* KvferryError as errors:
                self.client = None
                self.trace.say(self._name, "client failed", error=errors.exceptions[0])
            await asyncio.sleep(0.2)

    @property
    def _up(self) -> EngineClient:
        assert self.client is not None
        return self.client

    async def _work(self) -> None:
        self._recover()
        async with asyncio.TaskGroup() as tasks:
            for name in list(self.journal.pinned):
                tasks.create_task(self._await_end(name))
            for request_id in list(self.journal.asking):
                tasks.create_task(self._await_unknown(request_id))
            while True:
                await asyncio.sleep(self.seeded.expovariate(1.0) * self.load.pause_s)
                if not self.active():
                    continue
                if self.load.publishes and (not self.load.pulls or self.seeded.random() < 0.5):
                    tasks.create_task(self._publish())
                else:
                    tasks.create_task(self._pull())

    def _recover(self) -> None:
        """After a crash: what the life before was pulling is over, or the client would not be open."""
        for blocks, _ in (*self.journal.pulling.values(), *self.journal.lost):
            self._free(blocks, "a pull of an earlier life")
        self.journal.pulling.clear()
        self.journal.lost.clear()

    # Publications

    def _attached(self) -> list[bytes]:
        """The lives of the pools that the engine has mapped; maps anew what it can."""
        return attach(self._up, self._memory.layout, self.planes)

    async def _publish(self) -> None:
        attached = self._attached()
        if len(attached) < len(self._memory.layout.ranks):
            return
        blocks = self._take(Use.PUBLISHED, "a publication")
        if not blocks:
            return
        self._memory.write(blocks, self._content)
        tokens_per_block = self._memory.layout.groups[0].tokens_per_block
        tokens = len(blocks) * tokens_per_block - self.seeded.randrange(tokens_per_block)
        self.journal.request_count += 1
        request_id = f"publish-{self.journal.request_count}"
        ttl_s, readers = self.seeded.choice(self.load.ttl_s), self.seeded.choice((0, 1, 1, 2))
        content = Published(self._memory.worker, self._memory.layout, blocks, tokens, self._memory.snapshot())
        self.journal.asking[request_id] = blocks, asyncio.get_running_loop().time() + ttl_s + 4 * CALL_S
        while True:
            try:
                made = await self._up.publish({GROUP: list(blocks)}, tokens, ttl_s, readers, request_id)
            except KvferryError as error:
                self.trace.say(self._name, "publish failed", blocks=blocks, error=error)
                unknown = is_outcome_unknown(error)
                if (unknown or error.reason is Reason.NOT_READY) and self._attached() == attached:
                    await asyncio.sleep(0.2)
                    continue
                if unknown:
                    await self._await_unknown(request_id)
                    return
                self.router.publications[error.reason.value] += 1
                self.journal.asking.pop(request_id)
                self._hand_back(blocks, "")
                return
            break
        self.journal.asking.pop(request_id)
        self.journal.requests[made.name] = request_id
        self._published(made, content)
        if made.name in self.journal.pinned and self.seeded.random() < self.load.release_chance:
            await asyncio.sleep(self.seeded.random() * ttl_s)
            await self._release(made.name)

    def _published(self, made: Publication, content: Published) -> None:
        self.router.publications["published"] += 1
        self.trace.say(self._name, "published", name=made.name, blocks=content.blocks)
        if made.state.is_ended:
            self._hand_back(content.blocks, made.name)
            return
        self._memory.use(content.blocks, Use.PUBLISHED, made.name)
        self.journal.pinned[made.name] = content.blocks
        self.journal.words[made.name] = [
            (life.host, lease.slot, lease.word)
            for life in self.planes.values()
            for lease in life.plane._leases.leases()
            if made.name == f"publications/{lease.publication}"
        ]
        self.router.offer(
            Handle(made.handle, made.name, self._memory.worker, content.token_count, made.expected_reader_count),
            content,
        )

    async def _release(self, name: str) -> None:
        try:
            released = await self._up.release(name)
        except NotFound:
            return
        except KvferryError as error:
            self.trace.say(self._name, "release failed", name=name, error=error)
            return
        if released.state.is_ended:
            self._ended(name)

    async def _await_end(self, name: str) -> None:
        while name in self.journal.pinned:
            try:
                await self._up.wait_ended(name)
            except NotFound:
                # Neither control nor any data plane knows it.
                self._ended(name)
            except KvferryError:
                await asyncio.sleep(0.2)
            else:
                self._ended(name)

    async def _await_unknown(self, request_id: str) -> None:
        """Nobody has the handle: the blocks are free once no lease can hold."""
        blocks, until = self.journal.asking[request_id]
        await asyncio.sleep(until - asyncio.get_running_loop().time())
        del self.journal.asking[request_id]
        self._free(blocks, request_id)

    def _on_event(self, event: EngineEvent) -> None:
        if isinstance(event, PublicationEnded):
            self._ended(event.publication.name)

    def _ended(self, name: str) -> None:
        blocks = self.journal.pinned.pop(name, None)
        if blocks is not None:
            self._hand_back(blocks, name)

    def _hand_back(self, blocks: tuple[int, ...], name: str) -> None:
        """A publication is told ended: its blocks are computed into at once."""
        request_id = self.journal.requests.pop(name, "")
        for life in self.planes.values():
            for lease in life.plane._leases.leases():
                if request_id and request_id == LeaseAttributes.FromString(lease.attributes).request_id:
                    self.violation(f"{name} was handed back, and its request {request_id} made another lease")
        for host, slot, word in self.journal.words.pop(name, ()):
            if host.process.alive and int(host.words[slot]) == word:
                self.violation(f"{name} was handed back, and the lease word of rank {host.rank} stands")
        self._free(blocks, name or "a publication that was refused")

    def _free(self, blocks: tuple[int, ...], holder: str) -> None:
        self._memory.use(blocks, Use.ENGINE, holder)
        self._memory.write(blocks, self._content)

    # Pulls

    async def _pull(self) -> None:
        if len(self._attached()) < len(self._memory.layout.ranks):
            return
        handle = self.router.take(self._memory.worker, self.seeded)
        if handle is None:
            return
        per_block = self._memory.layout.groups[0].tokens_per_block
        count = -(-handle.token_count // per_block)
        blocks, again = self._take_lost(count), True
        if not blocks:
            blocks, again = self._take(Use.DESTINATION, "a pull", count), False
        if not blocks:
            return
        self._memory.write(blocks, self._content)
        timeout_s = self.seeded.choice(self.load.timeout_s)
        self.journal.request_count += 1
        request_id = f"pull-{self.journal.request_count}"
        deadline = asyncio.get_running_loop().time() + timeout_s
        self.journal.pulling[request_id] = blocks, deadline
        self._memory.use(blocks, Use.DESTINATION, request_id)
        # The engine sees the pools that it has mapped, also when their data plane has died since.
        mapped = dict(self._memory.pools)
        result, settled = await self._run_pull(handle, blocks, timeout_s, request_id)
        self.journal.pulling.pop(request_id, None)
        if isinstance(result, TransferResult) and result.succeeded:
            self._check(handle, blocks, mapped)
        self._pulled(handle, blocks, deadline, result, settled=settled, again=again)

    async def _run_pull(
        self, handle: Handle, blocks: tuple[int, ...], timeout_s: float, request_id: str
    ) -> tuple[TransferResult | KvferryError, bool]:
        """How a pull ended, and whether nothing can still arrive."""
        try:
            pull = await self._up.start_pull(
                handle.data, {GROUP: list(blocks)}, timeout_s, request_id, self.seeded.randrange(3)
            )
            if self.seeded.random() < self.load.cancel_chance:
                await asyncio.sleep(self.seeded.random() ** 2 * timeout_s)
                result = await pull.cancel()
            else:
                result = await _outcome(pull)
        except PullFailed as error:
            settled = error.destination_settled or await self._settles(self._up.wait_settled(error, SETTLE_S), blocks)
            return error, settled
        settled = result.destination_settled or await self._settles(pull.wait_settled(SETTLE_S), blocks)
        return result, settled

    async def _settles(
        self, waiting: Coroutine[object, object, TransferResult | None], blocks: tuple[int, ...]
    ) -> bool:
        """Whether it is told in time that nothing can arrive any more in the blocks of a pull that ended without."""
        self._memory.use(blocks, Use.QUARANTINED, "a pull that has not settled")
        with suppress(KvferryError):
            await waiting
            return True
        return False

    def _pulled(
        self,
        handle: Handle,
        blocks: tuple[int, ...],
        deadline: float,
        result: TransferResult | KvferryError,
        *,
        settled: bool,
        again: bool,
    ) -> None:
        succeeded = isinstance(result, TransferResult) and result.succeeded
        reason = None if succeeded else result.reason
        told = "SUCCEEDED" if succeeded else f"{reason.value if reason else 'NONE'}"
        self.router.outcomes[told] += 1
        name = result.name if isinstance(result, TransferResult) else ""
        self.trace.say(
            self._name,
            "pulled",
            of=handle.publication,
            blocks=blocks,
            end=told,
            settled=settled,
            name=name,
            message=getattr(result, "message", ""),
        )
        if succeeded or (settled and not again):
            self._free(blocks, f"a pull of {handle.publication}")
        else:
            self._quarantine(blocks, deadline)

    def _check(self, handle: Handle, blocks: tuple[int, ...], mapped: dict[int, Bytes]) -> None:
        wrong = self._memory.wrong_bytes(blocks, self.router.published[handle.worker, handle.publication], mapped)
        if wrong:
            self.violation(f"a pull of {handle.publication} of {handle.worker} succeeded with {wrong} wrong bytes")

    # Blocks

    def _take(self, use: Use, holder: str, count: int = 0) -> tuple[int, ...]:
        free = self._memory.free()
        count = count or self.seeded.randint(1, self.load.blocks_max)
        if len(free) < count:
            return ()
        blocks = tuple(self.seeded.sample(free, count))
        self._memory.use(blocks, use, holder)
        return blocks

    def _take_lost(self, count: int) -> tuple[int, ...]:
        """Blocks of unknown fate, to be read into again: the data plane refuses them while a read may write there."""
        now = asyncio.get_running_loop().time()
        for place, (blocks, usable_at) in enumerate(self.journal.lost):
            if len(blocks) == count and usable_at <= now:
                del self.journal.lost[place]
                return blocks
        return ()

    def _quarantine(self, blocks: tuple[int, ...], deadline: float) -> None:
        self._memory.use(blocks, Use.QUARANTINED, "a pull of unknown fate")
        self.journal.lost.append((blocks, deadline + REUSE_MARGIN_S))


async def _outcome(pull: Pull) -> TransferResult:
    outcome = await pull.outcome()
    if isinstance(outcome, PullFailed):
        raise outcome
    return outcome
