"""Block lists by layer group, and their checks. Pure."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import BlockError, InvalidArgument
from kvferry.core.reasons import Reason

BlockIds = npt.NDArray[np.int64]
BlockLists = Mapping[str, BlockIds]
"""Block ids by layer group, in order of tokens."""

BLOCKS_LISTED_MAX = 1 << 20
"""Bound on the ids of one request, all groups together."""
_FEW = 64
"""So few ids are checked sooner one by one."""
_SORTED_MAX = 1024
"""So many ids are sorted sooner than marked."""
_SPARSE = 32
"""Where there are so many times as many blocks as ids, a mark for each block takes longer than to sort the ids."""
_MARKS_FEW = 1 << 16
"""So few marks never take longer."""


def checked_blocks(
    lists: Iterable[tuple[str, Sequence[int] | npt.NDArray[np.uint32]]], block_counts: Mapping[str, int], field: str
) -> BlockLists:
    """Check block lists as they came over the wire; nothing is allocated for lists that are too long.

    Raises:
        InvalidArgument: no blocks at all or too many, an unknown group, or a group that is listed twice.
        BlockError: an id out of range or listed twice; the message names group, position and id.
    """
    listed: dict[str, Sequence[int] | npt.NDArray[np.uint32]] = {}
    for group, ids in lists:
        if group not in block_counts:
            raise InvalidArgument.of_field(f"{field}.group", group, "this rank holds no such layer group")
        if group in listed:
            raise InvalidArgument.of_field(f"{field}.group", group, "listed twice")
        listed[group] = ids
    require_few_blocks(field, [len(ids) for ids in listed.values()])
    checked = {group: ids_of(ids) for group, ids in listed.items()}
    for group, block_ids in checked.items():
        check_ids(group, block_ids, block_counts[group], field)
    return checked


def ids_of(listed: Sequence[int] | npt.NDArray[np.uint32]) -> BlockIds:
    """Listed ids as an array of their own."""
    return (
        listed.astype(np.int64)
        if isinstance(listed, np.ndarray)
        else np.fromiter(listed, dtype=np.int64, count=len(listed))
    )


def require_few_blocks(field: str, counts: Sequence[int]) -> None:
    """Refuse lists that are empty or longer than ``BLOCKS_LISTED_MAX``, all groups together.

    Raises:
        InvalidArgument: names the field and the count.
    """
    if not 0 < sum(counts) <= BLOCKS_LISTED_MAX:
        raise InvalidArgument.of_field(field, f"{sum(counts)} blocks", f"must list 1 to {BLOCKS_LISTED_MAX} blocks")


def check_ids(group: str, ids: BlockIds, block_count: int, field: str) -> None:
    """Refuse ids that are out of range or listed twice.

    Raises:
        BlockError: names group, position and id.
    """
    if not ids.size:
        return
    if ids.size <= _FEW:
        few = ids.tolist()
        if min(few) >= 0 and max(few) < block_count and len(set(few)) == len(few):
            return
    # Seen without a sign, what is negative is larger than any number of blocks.
    if np.maximum.reduce(ids.view(np.uint64)) >= block_count:
        outside = int(np.flatnonzero((ids < 0) | (ids >= block_count))[0])
        why = f"the group has blocks 0 to {block_count - 1}"
        raise block_error(group, outside, ids, field, why, Reason.BLOCK_OUT_OF_RANGE)
    if has_repeated(ids, block_count):
        _, first = np.unique(ids, return_index=True)
        repeated = int(np.setdiff1d(np.arange(ids.size), first)[0])
        raise block_error(group, repeated, ids, field, "listed twice", Reason.BLOCK_DUPLICATE)


def has_repeated(ids: BlockIds, block_count: int) -> bool:
    """Whether an id comes twice; all of them are from 0 to before ``block_count``."""
    if block_count > max(_SPARSE * ids.size, _MARKS_FEW):
        ordered = np.sort(ids)
        return bool((ordered[1:] == ordered[:-1]).any())
    # To mark what is listed takes a tenth of the time of sorting it.
    listed = np.zeros(block_count, dtype=np.bool_)
    listed[ids] = True
    return int(np.count_nonzero(listed)) < ids.size


def ascending(ids: BlockIds) -> BlockIds:
    """The order that sorts ids that are not negative, of which none comes twice: as ``argsort``, but faster."""
    if ids.size <= _SORTED_MAX or (size := int(ids.max()) + 1) > _SPARSE * ids.size:
        return ids.argsort()
    places = np.full(size, -1, dtype=np.int64)
    places[ids] = np.arange(ids.size, dtype=np.int64)
    return places[np.flatnonzero(places >= 0)]


def block_error(group: str, position: int, ids: BlockIds, field: str, why: str, reason: Reason) -> BlockError:
    """The error about one id of a list."""
    return BlockError.of_field(f"{field}[{group}].block_ids[{position}]", int(ids[position]), why, reason=reason)
