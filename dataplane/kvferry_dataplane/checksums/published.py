"""The sums of what this data plane has published: made when a lease begins, given to readers, dropped at its end."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kvferry.core.blocks import BlockLists
from kvferry.core.checksums.shares import EVERY_MAX
from kvferry.core.checksums.sums import BlocksToSum, BlockSums, GroupSums
from kvferry.core.errors import ChecksumsAbsent, InvalidArgument, KvferryError, LeaseEnded, ResourceExhausted
from kvferry.device.native import CancelFlag
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry_dataplane.checksums.threads import Digest, DigestThreads
from kvferry_dataplane.plan import Side

ANSWER_SUMS_MAX = 1 << 14
"""Sums of one answer: neighbouring blocks share rows beyond it. A model with more cells gets one row a layer group."""
ANSWERS_MAX = 1024
"""Answers under way."""


@dataclass(slots=True)
class _Kept:
    blocks: dict[str, BlocksToSum]
    flag: CancelFlag | None = None
    sums: dict[str, BlockSums] | None = None

    @property
    def sums_bytes(self) -> int:
        return sum(blocks.sums_bytes for blocks in self.blocks.values())


class PublishedSums:
    """Sums of one in ``every`` of the blocks of each lease, 0 for none. Every method runs on the event loop."""

    def __init__(self, threads: DigestThreads, every: int, bytes_max: int) -> None:
        self._threads = threads
        self._every = every
        self._bytes_max = bytes_max
        self._kept: dict[str, _Kept] = {}
        self._answering = 0
        self.held_bytes = 0
        """Memory of the sums."""

    @property
    def makes_sums(self) -> bool:
        """Whether sums are made at all."""
        return self._every > 0

    def check(self, publication: str, side: Side, blocks: BlockLists, token_count: int) -> dict[str, BlocksToSum]:
        """What is to be summed of a lease's blocks; groups that this rank does not hold are left out.

        Raises:
            BlockError: a list does not hold so many tokens.
            ResourceExhausted: the sums would take more memory than they may.
        """
        seed = zlib.crc32(publication.encode())
        found: dict[str, BlocksToSum] = {}
        for name, listed in blocks.items():
            placement = side.holds.placement(name)
            if placement is not None and listed.size:
                group = side.layout.group(name)
                found[name] = BlocksToSum.of(group, placement, listed, token_count, every=self._every, seed=seed)
        wanted = _Kept(found).sums_bytes
        if self.held_bytes + wanted > self._bytes_max:
            why = f"{self.held_bytes} bytes of checksums are held, {wanted} more are needed"
            raise ResourceExhausted.of_field("checksum_bytes", self._bytes_max, why)
        return found

    def begin(
        self, publication: str, blocks: dict[str, BlocksToSum], done: Callable[[KvferryError | None], None]
    ) -> None:
        """Sum the blocks of a lease that has begun; ``done`` is called with None, or with what went wrong."""
        kept = _Kept(blocks)
        self._kept[publication] = kept
        self.held_bytes += kept.sums_bytes

        def summed(result: dict[str, BlockSums] | KvferryError) -> None:
            kept.flag = None
            if isinstance(result, KvferryError):
                done(result)
                return
            kept.sums = result
            done(None)

        kept.flag = self._threads.start(partial(_summed, blocks), summed)

    def forget(self, publication: str) -> None:
        """The lease has ended."""
        kept = self._kept.pop(publication, None)
        if kept is None:
            return
        self.held_bytes -= kept.sums_bytes
        if kept.flag is not None:
            kept.flag.raise_()

    def answer(
        self,
        publication: str,
        scope: neg.ChecksumScope,
        done: Callable[[dict[str, GroupSums] | KvferryError], None],
    ) -> None:
        """Work out what a reader compares with.

        Raises:
            ChecksumsAbsent: no sums are made, or of fewer blocks than are asked for.
            LeaseEnded: there is no such lease.
            InvalidArgument: the scope is wrong.
            ResourceExhausted: too many answers are under way.
        """
        if not 1 <= scope.every <= EVERY_MAX:
            raise InvalidArgument.of_field("scope.every", scope.every, f"must be 1 to {EVERY_MAX}")
        if not self.makes_sums:
            raise ChecksumsAbsent("the source makes no checksums of what it publishes")
        if scope.every < self._every:
            why = f"the source makes checksums of one block in {self._every}"
            raise ChecksumsAbsent.of_field("scope.every", scope.every, why)
        kept = self._kept.get(publication)
        if kept is None or kept.sums is None:
            raise LeaseEnded.of_field("publication", publication, "holds no lease")
        if self._answering >= ANSWERS_MAX:
            raise ResourceExhausted(f"{ANSWERS_MAX} answers about checksums are under way, the bound")
        self._answering += 1

        def answered(result: dict[str, GroupSums] | KvferryError) -> None:
            self._answering -= 1
            done(result)

        starts = {start.group: start.first_token for start in scope.starts}
        step = scope.every // self._every
        self._threads.start(partial(_answered, kept.sums, starts, step, scope.seed), answered)


def _summed(blocks: dict[str, BlocksToSum], digest: Digest) -> dict[str, BlockSums]:
    return {name: BlockSums(to_sum, digest(to_sum.region())) for name, to_sum in blocks.items()}


def _answered(
    sums: dict[str, BlockSums], starts: dict[str, int], every: int, seed: int, digest: Digest
) -> dict[str, GroupSums]:
    rows_max = max(ANSWER_SUMS_MAX // max(sum(group.blocks.cell_count for group in sums.values()), 1), 1)
    return {name: group.answer(starts.get(name, 0), every, seed, rows_max, digest) for name, group in sums.items()}
