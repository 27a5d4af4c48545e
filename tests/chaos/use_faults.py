"""Faults of those who use kvferry: leases too short, handles used again or forged, pools full, many cancellations."""

import asyncio
import random
from dataclasses import replace

from tests.chaos.faults import Fault, Scene
from tests.chaos.wire import EngineGone, PublishOrder, PullOrder


class ShortLeases(Fault):
    """Leases end while reads run, and the source's engine writes to the blocks at once."""

    name = "leases expire while read, blocks reused"
    kind = "expire lease"
    COUNT = 40

    async def inject(self, scene: Scene) -> None:
        """Publish for some milliseconds, and pull at that time."""
        draw = scene.random
        for _ in range(self.COUNT):
            order = PublishOrder(
                seed=draw.getrandbits(48),
                token_count=128 * 16,
                ttl_s=draw.uniform(0.005, 0.08),
                readers=0,
            )
            await scene.load.move(draw.choice(scene.site.sources), [draw.choice(scene.site.destinations)], order)

    async def last(self, scene: Scene) -> None:
        """It is over with the last of them."""

    async def heal(self, scene: Scene) -> None:
        """Nothing to do."""


class ReuseUnderRead(Fault):
    """A read stands still, its lease ends, the source's engine writes to the blocks, and the read goes on."""

    name = "lease expires under a read that stands still, blocks reused"
    kind = "expire lease"
    TTL_S = 0.4
    FROZEN_S = 0.6
    """Short enough that its control does not take the reader for lost."""

    async def inject(self, scene: Scene) -> None:
        """The reader is frozen from before its first byte until after the lease."""
        await self.on(scene, scene.random.choice(scene.site.destinations))

    async def on(self, scene: Scene, destination: str) -> None:
        """The same, on one reader."""
        site, draw = scene.site, scene.random
        frozen = site.of(destination, "data plane")
        for managed in frozen:
            managed.pause()
        order = PublishOrder(seed=draw.getrandbits(48), token_count=32 * 16, ttl_s=self.TTL_S, readers=0)
        try:
            async with asyncio.TaskGroup() as moves:
                moves.create_task(self._pull(scene, destination, order))
                await asyncio.sleep(self.FROZEN_S)
                for managed in frozen:
                    managed.resume()
        finally:
            for managed in frozen:
                managed.resume()

    async def last(self, scene: Scene) -> None:
        """It is over with the pull."""

    async def heal(self, scene: Scene) -> None:
        """Nothing to do."""

    async def _pull(self, scene: Scene, destination: str, order: PublishOrder) -> None:
        try:
            published = await scene.site.engines[scene.random.choice(scene.site.sources)].publish(order)
        except (EngineGone, KeyError):
            return
        if published.handle:
            pull = PullOrder(
                handle=published.handle, seed=order.seed, token_count=order.token_count, timeout_s=10 * self.TTL_S
            )
            await scene.load.pull(destination, pull)


class OldHandles(Fault):
    """Handles of publications that have ended, of earlier incarnations, cut short and changed, are pulled again.

    One that still holds may succeed, with the right bytes.
    """

    name = "expired, replayed and forged handles"
    kind = "replay handles"

    async def inject(self, scene: Scene) -> None:
        """Pull them all."""
        replayed = scene.random.sample(list(scene.load.handles), min(len(scene.load.handles), 24))
        async with asyncio.TaskGroup() as pulls:
            for destination, order in replayed:
                handle = _changed(order.handle, scene.random)
                again = replace(order, handle=handle, cancel_after_s=None, timeout_s=2.0)
                pulls.create_task(scene.load.pull(destination, again))

    async def last(self, scene: Scene) -> None:
        """It is over with the last of them."""

    async def heal(self, scene: Scene) -> None:
        """Nothing to do."""


class FullPool(Fault):
    """A source's engine publishes until its pool is full: it refuses itself, and goes on when leases end."""

    name = "pool exhausted"
    kind = "fill pool"
    TTL_S = 2.0

    async def inject(self, scene: Scene) -> None:
        """Publish everything that is free, in pieces."""
        engine = scene.site.engines.get(scene.random.choice(scene.site.sources))
        while engine is not None:
            order = PublishOrder(seed=scene.random.getrandbits(48), token_count=16 * 16, ttl_s=self.TTL_S, readers=0)
            try:
                if (await engine.publish(order)).reason:
                    return
            except EngineGone:
                return

    async def last(self, scene: Scene) -> None:
        """Until the leases end."""
        await asyncio.sleep(self.TTL_S)

    async def heal(self, scene: Scene) -> None:
        """Nothing to do."""


class Cancellations(Fault):
    """Very many tiny transfers, cancelled at random points of their lives."""

    kind = "cancel"
    AT_ONCE = 16

    def __init__(self, count: int) -> None:
        self._count = count
        self.name = f"{count} tiny transfers cancelled at random points"

    async def inject(self, scene: Scene) -> None:
        """One publication for each pair, read by all."""
        room = asyncio.Semaphore(self.AT_ONCE)

        async def one(destination: str, order: PullOrder) -> None:
            async with room:
                await scene.load.pull(destination, order)

        done = 0
        while done < self._count:
            source = scene.random.choice(scene.site.sources)
            seed = scene.random.getrandbits(48)
            batch = min(500, self._count - done)
            done += batch
            engine = scene.site.engines.get(source)
            if engine is None:
                continue
            try:
                published = await engine.publish(PublishOrder(seed=seed, token_count=16, ttl_s=30.0, readers=0))
            except EngineGone:
                continue
            if not published.handle:
                continue
            async with asyncio.TaskGroup() as pulls:
                for _ in range(batch):
                    order = PullOrder(
                        handle=published.handle,
                        seed=seed,
                        token_count=16,
                        timeout_s=5.0,
                        cancel_after_s=scene.random.expovariate(1 / 0.01),
                    )
                    pulls.create_task(one(scene.random.choice(scene.site.destinations), order))
            await engine.release(published.name)

    async def last(self, scene: Scene) -> None:
        """It is over with the last of them."""

    async def heal(self, scene: Scene) -> None:
        """Nothing to do."""


def _changed(handle: str, draw: random.Random) -> str:
    """The handle as it is, or with a byte changed, or cut short."""
    data = bytearray.fromhex(handle)
    how = draw.random()
    if how < 0.2:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how < 0.3:
        del data[draw.randrange(1, len(data)) :]
    return data.hex()
