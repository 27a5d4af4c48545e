"""Block lists of requests, checked against a layout before anything is done with them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from kvferry.core.errors import BlockError, InvalidArgument, MessageTooLarge
from kvferry.core.layouts import WorkerLayout
from kvferry.core.planning.tokens import check_listed
from kvferry.core.reasons import Reason

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
        _check_ids(f"{field}[{group}]", ids, layout.block_count(group, data_parallel_rank))


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


def _check_ids(field: str, ids: Sequence[int], block_count: int) -> None:
    if len(set(ids)) != len(ids):
        twice = next(block for block, count in Counter(ids).items() if count > 1)
        raise BlockError.of_field(f"{field}", twice, "block listed twice", reason=Reason.BLOCK_DUPLICATE)
    if ids and max(ids) >= block_count:
        position = next(i for i, block in enumerate(ids) if block >= block_count)
        raise BlockError.of_field(f"{field}[{position}]", ids[position], f"block ids are 0 to {block_count - 1}")
