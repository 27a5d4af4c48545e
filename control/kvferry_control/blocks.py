"""Block lists of requests, checked against a layout before anything is done with them."""

from collections.abc import Mapping, Sequence

import numpy as np

from kvferry.core.blocks import check_ids
from kvferry.core.errors import InvalidArgument, MessageTooLarge
from kvferry.core.layouts import WorkerLayout
from kvferry.core.planning.tokens import check_listed

Blocks = Mapping[str, Sequence[int]]


def check_blocks(field: str, blocks: Blocks, layout: WorkerLayout, count_max: int, data_parallel_rank: int = 0) -> None:
    """Refuse block lists that do not fit the layout.

    Raises:
        InvalidArgument: no blocks, or an unknown group.
        MessageTooLarge: more than ``count_max`` blocks.
        BlockError: an id is out of range or listed twice; names the group, the position and the id.
    """
    if data_parallel_rank >= layout.data_parallel_size:
        last = layout.data_parallel_size - 1
        raise InvalidArgument.of_field("data_parallel_rank", data_parallel_rank, f"this worker has 0 to {last}")
    total = sum(len(ids) for ids in blocks.values())
    if total == 0:
        raise InvalidArgument.of_field(field, "[]", "lists no blocks")
    if total > count_max:
        raise MessageTooLarge.of_field(field, f"{total} blocks", f"at most {count_max} are taken at once")
    known = {group.name for group in layout.groups}
    for group, ids in blocks.items():
        if group not in known:
            raise InvalidArgument.of_field(f"{field}.group", group, f"the layout has {sorted(known)}")
        held = layout.block_count(group, data_parallel_rank)
        check_ids(group, np.fromiter(ids, dtype=np.int64, count=len(ids)), held, field)


def check_tokens(field: str, blocks: Blocks, layout: WorkerLayout, token_count: int, first_token: int = 0) -> None:
    """Refuse block lists that do not hold the tokens from ``first_token`` to ``token_count``, group by group.

    Raises:
        BlockError: names the group, the number of blocks and what the tokens take.
        InvalidArgument: no tokens are left.
    """
    if first_token > token_count:
        raise InvalidArgument.of_field("first_token", first_token, f"the publication has {token_count} tokens")
    for group in layout.groups:
        check_listed(field, group, len(blocks.get(group.name, ())), token_count, first_token)
