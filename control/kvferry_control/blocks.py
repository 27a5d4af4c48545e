"""Block lists of requests, checked against a layout before anything is done with them.

They stay in the wire form in which they came and in which they are passed on: to make numbers of them and messages of
these again takes longer than all else that control does for a transfer of many blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvferry.core.blocks import check_ids, ids_of
from kvferry.core.errors import InvalidArgument, MessageTooLarge
from kvferry.core.layouts import WorkerLayout
from kvferry.core.planning.tokens import check_listed
from kvferry.layout.v1.layout_pb2 import BlockList
from kvferry.rpc.block_lists import listed_count, listed_ids

Blocks = Mapping[str, BlockList]
"""Block lists by layer group."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What a data-parallel rank of a worker has: its ranks, and room for so many blocks by layer group."""

    ranks: frozenset[int]
    block_counts: Mapping[str, int]


def shard_of(layout: WorkerLayout, data_parallel_rank: int) -> Shard:
    """A shard of a layout.

    Raises:
        InvalidArgument: the layout has no such data-parallel rank.
    """
    if data_parallel_rank >= layout.data_parallel_size:
        last = layout.data_parallel_size - 1
        raise InvalidArgument.of_field("data_parallel_rank", data_parallel_rank, f"this worker has 0 to {last}")
    return Shard(
        frozenset(rank.rank for rank in layout.ranks_of(data_parallel_rank)),
        {group.name: layout.block_count(group.name, data_parallel_rank) for group in layout.groups},
    )


class Shards:
    """The shards of the layout that was last asked for, which a worker keeps as long as its engine does."""

    def __init__(self) -> None:
        self._layout: WorkerLayout | None = None
        self._known: dict[int, Shard] = {}

    def of(self, layout: WorkerLayout, data_parallel_rank: int) -> Shard:
        """As :func:`shard_of`, worked out once."""
        if layout is not self._layout:
            self._layout, self._known = layout, {}
        shard = self._known.get(data_parallel_rank)
        if shard is None:
            shard = self._known[data_parallel_rank] = shard_of(layout, data_parallel_rank)
        return shard


def check_blocks(field: str, blocks: Blocks, shard: Shard, count_max: int) -> None:
    """Refuse block lists that do not fit a shard.

    Raises:
        InvalidArgument: no blocks, or an unknown group.
        MessageTooLarge: more than ``count_max`` blocks.
        BlockError: an id is out of range or listed twice; names the group, the position and the id.
    """
    total = count_blocks(blocks)
    if total == 0:
        raise InvalidArgument.of_field(field, "[]", "lists no blocks")
    if total > count_max:
        raise MessageTooLarge.of_field(field, f"{total} blocks", f"at most {count_max} are taken at once")
    for group, listed in blocks.items():
        held = shard.block_counts.get(group)
        if held is None:
            raise InvalidArgument.of_field(f"{field}.group", group, f"the layout has {sorted(shard.block_counts)}")
        check_ids(group, ids_of(listed_ids(field, listed)), held, field)


def count_blocks(blocks: Blocks) -> int:
    """Blocks of all groups together."""
    return sum(listed_count(listed) for listed in blocks.values())


def check_tokens(field: str, blocks: Blocks, layout: WorkerLayout, token_count: int, first_token: int = 0) -> None:
    """Refuse block lists that do not hold the tokens from ``first_token`` to ``token_count``, group by group.

    Raises:
        BlockError: names the group, the number of blocks and what the tokens take.
        InvalidArgument: no tokens are left.
    """
    if first_token > token_count:
        raise InvalidArgument.of_field("first_token", first_token, f"the publication has {token_count} tokens")
    for group in layout.groups:
        count = listed_count(blocks[group.name]) if group.name in blocks else 0
        check_listed(field, group, count, token_count, first_token)
