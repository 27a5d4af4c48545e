"""An engine under chaos: fills, publishes, pulls and compares as it is told, and never trusts what it has not seen.

``python -m tests.chaos.engine_process``. It writes to published blocks the moment it hears that they are its own again,
poisons blocks before every pull, keeps those of failed pulls out of use until they are said to be settled, and watches
them for late bytes from then on.
"""

import argparse
import asyncio
import contextlib
import os
import random
import resource
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog
from grpc import aio

from kvferry import EngineClient
from kvferry.core.errors import KvferryError
from kvferry.logs import configure_logs
from kvferry.publication.v1 import publication_pb2 as pb
from kvferry.publication.v1.publication_pb2_grpc import PublicationServiceStub
from kvferry.sdk.calls import is_outcome_unknown
from kvferry.sdk.convert import publication_of
from kvferry.sdk.events import EngineEvent, PublicationEnded
from kvferry.sdk.failures import PullFailed, destination_settled
from kvferry.sdk.results import TransferResult
from tests.chaos.contents import BLOCK_COUNT, GROUP, RankBlocks, blocks_of, contents, layout_of
from tests.chaos.wire import Published, PublishOrder, Pulled, PullOrder, serve

WATCHED_S = 2.0
"""How long settled blocks are watched for late bytes."""
SETTLED_S = 5.0
"""How long control is asked whether blocks have settled before that is said, and it is asked again."""
PAUSE_S = 0.2
KEPT_SHARE = 0.1
"""Of pulls that succeeded, those that are compared once more."""
KEPT_S = 0.5
ENDED_KEPT_MAX = 1_000
LATE = "bytes came late"
"""Logged of every transfer that had any, since an engine that is killed tells no figures."""
_log = structlog.get_logger(__name__)

_POISON = 0xDEAD0000
_SCRIBBLE = 0xBAD00000


class ChaosEngine:
    """One engine; everything on the event loop, so that a write to blocks is never half done when a pull goes on."""

    def __init__(self, client: EngineClient, tasks: asyncio.TaskGroup, seed: int) -> None:
        self._client = client
        self._tasks = tasks
        self._random = random.Random(seed)  # noqa: S311 - chaos is to be repeated, not to be secret
        self._free = list(range(BLOCK_COUNT))
        self._published: dict[str, list[int]] = {}
        self._ended: dict[str, None] = {}
        self._views: dict[int, tuple[object, RankBlocks]] = {}
        self._pulling = 0
        self._watching = 0

    def on_event(self, event: EngineEvent) -> None:
        """Use blocks anew as soon as they are said to be free."""
        if not isinstance(event, PublicationEnded):
            return
        name = event.publication.name
        blocks = self._published.pop(name, None)
        if blocks is None:
            self._ended[name] = None
            if len(self._ended) > ENDED_KEPT_MAX:
                del self._ended[next(iter(self._ended))]
            return
        self._scribble(blocks)
        self._give_back(blocks)

    async def publish(self, said: dict[str, Any]) -> dict[str, Any]:
        """Carry out a PublishOrder."""
        order = PublishOrder(**said)
        blocks = self._take(blocks_of(order.token_count))
        if blocks is None:
            return asdict(Published(reason="ENGINE_FULL"))
        try:
            await self._attach()
            self._write(blocks, order.seed)
            publication = await self._client.publish(blocks, order.token_count, order.ttl_s, order.readers)
        except KvferryError as error:
            if is_outcome_unknown(error):
                # They may be pinned, but for no longer than this.
                self._watching += 1
                asyncio.get_running_loop().call_later(order.ttl_s, self._give_back_watched, blocks)
            else:
                self._give_back(blocks)
            return asdict(Published(reason=error.reason.value))
        if publication.name in self._ended:
            self._give_back(blocks)
        else:
            self._published[publication.name] = blocks
        if order.reuse_early:
            asyncio.get_running_loop().call_later(order.ttl_s, self._scribble, blocks)
        return asdict(Published(name=publication.name, handle=publication.handle.hex()))

    async def release(self, said: dict[str, Any]) -> dict[str, Any]:
        """End a publication; its end comes as an event as well."""
        try:
            await self._client.release(said["name"])
        except KvferryError as error:
            return {"reason": error.reason.value}
        return {"reason": ""}

    async def pull(self, said: dict[str, Any]) -> dict[str, Any]:
        """Carry out a PullOrder."""
        order = PullOrder(**said)
        blocks = self._take(blocks_of(order.token_count))
        if blocks is None:
            return asdict(Pulled(state="refused", reason="ENGINE_FULL"))
        self._pulling += 1
        try:
            pulled = await self._pull(order, blocks)
        finally:
            self._pulling -= 1
        return asdict(pulled)

    async def figures(self, _said: dict[str, Any]) -> dict[str, Any]:
        """What this engine counts."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "free_blocks": len(self._free),
            "live_publications": len(self._published),
            "pulling": self._pulling,
            "watching": self._watching,
            "cpu_s": used.ru_utime + used.ru_stime,
        }

    async def _pull(self, order: PullOrder, blocks: list[int]) -> Pulled:
        poison = _POISON | self._random.randrange(1 << 16)
        try:
            await self._attach()
            self._fill(blocks, poison)
        except KvferryError as error:
            self._give_back(blocks)
            return Pulled(state="refused", reason=error.reason.value, message=error.message)
        began_at = time.monotonic()
        pull = self._tasks.create_task(self._outcome(order, blocks))
        timer = None
        if order.cancel_after_s is not None:
            timer = asyncio.get_running_loop().call_later(order.cancel_after_s, pull.cancel)
        await asyncio.wait([pull])
        ended_at = time.monotonic()
        if timer is not None:
            timer.cancel()
        pulled = Pulled(state="succeeded", began_at=began_at, ended_at=ended_at, timeout_s=order.timeout_s)
        outcome = asyncio.CancelledError() if pull.cancelled() else pull.result()
        if isinstance(outcome, TransferResult):
            wrong = self._compare(blocks, order)
            pulled = replace(pulled, transfer=outcome.name, path=outcome.path, wrong_bytes=wrong)
            self._keep_a_while(blocks, order, pulled)
        else:
            pulled = self._not_pulled(pulled, outcome)
            self._tasks.create_task(self._watch(blocks, poison, outcome, pulled))
        _log.info("pull ended", blocks=blocks, seed=order.seed, **asdict(pulled))
        return pulled

    def _not_pulled(self, pulled: Pulled, outcome: BaseException) -> Pulled:
        failed = outcome if isinstance(outcome, KvferryError) else outcome.__cause__
        cancelled = isinstance(outcome, asyncio.CancelledError)
        return replace(
            pulled,
            state="cancelled" if cancelled else "failed",
            reason=failed.reason.value if isinstance(failed, KvferryError) else "",
            message=failed.message if isinstance(failed, KvferryError) else "",
            transfer=failed.transfer.name if isinstance(failed, PullFailed) and failed.transfer is not None else "",
            settled=destination_settled(outcome),
        )

    async def _outcome(self, order: PullOrder, blocks: list[int]) -> TransferResult | BaseException:
        try:
            return await self._client.pull(
                bytes.fromhex(order.handle), blocks, order.timeout_s, priority=order.priority
            )
        except (KvferryError, asyncio.CancelledError) as error:
            return error

    def _keep_a_while(self, blocks: list[int], order: PullOrder, pulled: Pulled) -> None:
        """Some of what was right shall still be right later: nothing may write to it."""
        if self._random.random() > KEPT_SHARE:
            self._give_back(blocks)
            return
        self._watching += 1
        asyncio.get_running_loop().call_later(KEPT_S, self._kept, blocks, order, pulled, self._pools())

    def _kept(self, blocks: list[int], order: PullOrder, pulled: Pulled, pools: dict[int, object]) -> None:
        if pools == self._pools():
            self._say_late(self._compare(blocks, order), blocks, pulled)
        self._give_back_watched(blocks)

    async def _watch(self, blocks: list[int], poison: int, outcome: BaseException, pulled: Pulled) -> None:
        """Keep the blocks of a failed pull until no byte may arrive in them any more, and then see that none does."""
        self._watching += 1
        pools = self._pools()
        if not pulled.settled:
            await self._settled(outcome)
        if pools == self._pools():
            self._fill(blocks, poison)
            await asyncio.sleep(WATCHED_S)
        if pools == self._pools():
            self._say_late(sum(view.other_bytes(blocks, poison) for _, view in self._views.values()), blocks, pulled)
        self._give_back_watched(blocks)

    async def _settled(self, outcome: BaseException) -> None:
        while True:
            try:
                await self._client.wait_settled(outcome, SETTLED_S)
            except KvferryError as error:
                _log.info("not settled", error=str(error))
                await asyncio.sleep(PAUSE_S)
            else:
                return

    def _say_late(self, late: int, blocks: list[int], pulled: Pulled) -> None:
        """Say how many came, of which transfer, and what is there now: the log has who pulled those contents."""
        if not late:
            return
        words = {rank: view.first_words(blocks) for rank, (_, view) in self._views.items()}
        _log.error(LATE, late_bytes=late, blocks=blocks, words=words, **asdict(pulled))

    def _take(self, count: int) -> list[int] | None:
        if len(self._free) < count:
            return None
        self._random.shuffle(self._free)
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _give_back(self, blocks: list[int]) -> None:
        self._free += blocks

    def _give_back_watched(self, blocks: list[int]) -> None:
        self._watching -= 1
        self._give_back(blocks)

    async def _attach(self) -> None:
        layout = self._client.layout
        assert layout is not None
        for rank in layout.ranks:
            pool = await self._client.attach(rank.rank)
            known = self._views.get(rank.rank)
            if known is None or known[0] is not pool:
                placement = rank.placement(GROUP)
                assert placement is not None
                self._views[rank.rank] = pool, RankBlocks(pool.numpy(), placement)

    def _pools(self) -> dict[int, object]:
        return {rank: pool for rank, (pool, _) in self._views.items()}

    def _write(self, blocks: list[int], seed: int) -> None:
        words = contents(seed, len(blocks))
        for _, view in self._views.values():
            view.write(blocks, words)

    def _fill(self, blocks: list[int], word: int) -> None:
        for _, view in self._views.values():
            view.fill(blocks, word)

    def _scribble(self, blocks: list[int]) -> None:
        self._fill(blocks, _SCRIBBLE | self._random.randrange(1 << 16))

    def _compare(self, blocks: list[int], order: PullOrder) -> int:
        words = contents(order.seed, len(blocks))
        return sum(view.wrong_bytes(blocks, words, order.token_count) for _, view in self._views.values())


async def _end_publications_of_earlier_lives(control_socket: Path, client: EngineClient) -> None:
    """An engine that was killed does not know which of its blocks are pinned: none shall be, before it uses any.

    What cannot be released for the time being ends by its lease.
    """
    async with aio.insecure_channel(f"unix:{control_socket}") as channel:
        stub = PublicationServiceStub(channel)
        while True:
            listed = await stub.ListPublications(pb.ListPublicationsRequest(page_size=1_000), wait_for_ready=True)
            live = [shown for shown in map(publication_of, listed.publications) if not shown.state.is_ended]
            if not live:
                return
            for publication in live:
                with contextlib.suppress(KvferryError):
                    await client.release(publication.name)


async def _run(options: argparse.Namespace) -> None:
    configure_logs("info", "json")
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    engines: list[ChaosEngine] = []

    def on_event(event: EngineEvent) -> None:
        for engine in engines:
            engine.on_event(event)

    client = EngineClient.connect(
        options.control_socket, options.engine_id, layout_of(options.ranks, options.order), on_event=on_event
    )
    async with client, asyncio.TaskGroup() as tasks:
        engine = ChaosEngine(client, tasks, options.seed)
        engines.append(engine)
        handlers = {
            "publish": engine.publish,
            "release": engine.release,
            "pull": engine.pull,
            "figures": engine.figures,
        }
        await _end_publications_of_earlier_lives(options.control_socket, client)
        server = await serve(options.socket, handlers)
        os.write(options.ready_fd, b"ready\n")
        os.close(options.ready_fd)
        await stopping.wait()
        server.close()
        os._exit(0)


def main() -> None:
    """Run until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-socket", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--engine-id", required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--order", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    options = parser.parse_args()
    # An earlier life of it was killed.
    options.socket.unlink(missing_ok=True)
    asyncio.run(_run(options))


if __name__ == "__main__":
    main()
