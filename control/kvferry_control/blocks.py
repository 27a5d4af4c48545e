"""Block lists of requests, checked against a layout before anything is done with them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from kvferry.core.errors import BlockError, InvalidArgument, MessageTooLarge
from kvferry.core.layouts import WorkerLayout
from kvferry.core.reasons import Reason

Blocks = Mapping[str, Sequence[int]]


def check_blocks(field: str, blocks: Blocks, layout: WorkerLayout, count_max: int) -> None:
    """Refuse block lists that do not fit the layout.

    Raises:
        InvalidArgument: no blocks, or an unknown group.
        MessageTooLarge: more than ``count_max`` blocks.
        BlockError: an id is out of range or listed twice; names the group, the position and the id.
    """
    total = sum(len(ids) for ids in blocks.values())
    if total == 0:
        raise InvalidArgument.of_field(field, "[]", "lists no blocks")
    if total > count_max:
        raise MessageTooLarge.of_field(field, f"{total} blocks", f"at most {count_max} are taken at once")
    known = {group.name for group in layout.groups}
    for group, ids in blocks.items():
        if group not in known:
            raise InvalidArgument.of_field(f"{field}.group", group, f"the layout has {sorted(known)}")
        _check_ids(f"{field}[{group}]", ids, layout.block_count(group))


def check_same_counts(source: Blocks, destination: Blocks) -> None:
    """Refuse destination blocks that are not as many as the source's, group by group.

    Raises:
        BlockError: names the group and both counts.
    """
    for group in sorted(source.keys() | destination.keys()):
        ours, theirs = len(destination.get(group, ())), len(source.get(group, ()))
        if ours != theirs:
            raise BlockError.of_field(
                f"destination_blocks[{group}]",
                f"{ours} blocks",
                f"the publication has {theirs}",
                reason=Reason.BLOCK_COUNT_MISMATCH,
            )


def _check_ids(field: str, ids: Sequence[int], block_count: int) -> None:
    if len(set(ids)) != len(ids):
        twice = next(block for block, count in Counter(ids).items() if count > 1)
        raise BlockError.of_field(f"{field}", twice, "block listed twice", reason=Reason.BLOCK_DUPLICATE)
    if ids and max(ids) >= block_count:
        position = next(i for i, block in enumerate(ids) if block >= block_count)
        raise BlockError.of_field(f"{field}[{position}]", ids[position], f"block ids are 0 to {block_count - 1}")
