"""Block lists between their wire forms and arrays of ids.

The packed form is the ids' own bytes: to make numbers of the other form and numbers into it again takes longer than all
else that a process does for a transfer of many blocks.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import InvalidArgument
from kvferry.layout.v1.layout_pb2 import BlockList

_PACKED = np.dtype("<u4")

ListedIds = Sequence[int] | npt.NDArray[np.uint32]
"""Ids as they came: a view of bytes, or the message's own sequence."""


def block_list(group: str, ids: npt.NDArray[np.int64]) -> BlockList:
    """The packed wire form of ids, all of which fit into 32 bits."""
    return BlockList(group=group, packed_ids=ids.astype(_PACKED).tobytes())


def listed_ids(field: str, listed: BlockList) -> ListedIds:
    """The ids of either wire form, not yet checked; nothing is copied.

    Raises:
        InvalidArgument: both forms are given, or the packed one is no whole number of ids.
    """
    if not listed.packed_ids:
        return listed.block_ids
    size = len(listed.packed_ids)
    if listed.block_ids or size % _PACKED.itemsize:
        name = f"{field}[{listed.group}].packed_ids"
        raise InvalidArgument.of_field(name, f"{size} bytes", "must be ids of 4 bytes, and no block_ids beside them")
    return np.frombuffer(listed.packed_ids, dtype=_PACKED)


def listed_count(listed: BlockList) -> int:
    """How many ids are listed."""
    return len(listed.block_ids) or len(listed.packed_ids) // _PACKED.itemsize
