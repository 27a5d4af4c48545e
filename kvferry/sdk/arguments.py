"""Arguments of calls, checked before anything is sent. Each refusal names the field and its value."""

import math
import operator
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from kvferry.core.blocks import has_repeated
from kvferry.core.errors import BlockError, ConfigInvalid, InvalidArgument, MessageTooLarge
from kvferry.core.handles import split
from kvferry.core.layouts import BLOCKS_MAX, WorkerLayout
from kvferry.core.reasons import Reason
from kvferry.layout.v1 import layout_pb2
from kvferry.rpc.block_lists import block_list
from kvferry.rpc.options import MESSAGE_BYTES_MAX

ID_CHARS_MAX = 128
_FRESH_ID_BYTES = 16
"""Of random bits, in an id that is made here: as many as a UUID has."""
SOCKET_PATH_BYTES_MAX = 107
TIMEOUT_S_MAX = 86_400.0
"""Longest deadline or lease: a day."""
COUNT_MAX = (1 << 32) - 1
TOKENS_MAX = (1 << 63) - 1
PRIORITY_MAX = (1 << 31) - 1
_FRAMING_BYTES = 1_024
"""What a message may grow beyond its body."""
_SAFE_TYPES = frozenset(np.dtype(name) for name in ("int64", "int32", "uint32", "int16", "uint16", "uint8", "int8"))
"""Of arrays that are taken as they are."""

BlockIds = Sequence[SupportsIndex] | Iterable[SupportsIndex]
"""Block ids: any sequence of integers, a one-dimensional numpy array or torch tensor of integers."""
Blocks = BlockIds | Mapping[str, BlockIds]
"""Block ids by layer group, or plain block ids where the layout has one group."""
BlockCounts = Mapping[str, int]
"""How many blocks every layer group of a layout has."""


def checked_id(field: str, value: str | None) -> str:
    """``value``, or a fresh id for None.

    Raises:
        InvalidArgument: not 1 to 128 printable characters.
    """
    if value is None:
        return os.urandom(_FRESH_ID_BYTES).hex()
    if not _is_text(value) or not 1 <= len(value) <= ID_CHARS_MAX or not value.isprintable():
        raise InvalidArgument.of_field(field, value, f"must be 1 to {ID_CHARS_MAX} printable characters")
    return value


def checked_seconds(field: str, value: float, bound: float = TIMEOUT_S_MAX) -> float:
    """``value`` as float.

    Raises:
        InvalidArgument: no number, not finite, not more than 0, or beyond ``bound``.
    """
    # Nearly always it is a plain one.
    if type(value) is float and 0 < value <= bound:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument.of_field(field, value, "must be a number of seconds")
    if not math.isfinite(value) or not 0 < value <= bound:
        raise InvalidArgument.of_field(field, value, f"must be more than 0 and at most {bound:g} seconds")
    return float(value)


def checked_int(field: str, value: int, low: int, high: int) -> int:
    """``value`` as int.

    Raises:
        InvalidArgument: no integer, or outside ``low`` to ``high``.
    """
    # Nearly always it is a plain one.
    if type(value) is int and low <= value <= high:
        return value
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument.of_field(field, value, "must be an integer") from None
    if isinstance(value, bool) or not low <= number <= high:
        raise InvalidArgument.of_field(field, value, f"must be an integer from {low} to {high}")
    return number


def checked_handle(handle: bytes) -> bytes:
    """``handle``.

    Raises:
        InvalidArgument: not bytes. The value is not shown: it may be a secret.
        HandleMalformed: truncated, too long, of an unknown version, or joined wrongly.
    """
    if not isinstance(handle, bytes):
        raise InvalidArgument.of_field("handle", type(handle).__name__, "must be bytes")
    split(handle)
    return handle


def checked_name(collection: str, name: str) -> str:
    """The resource name ``{collection}/{id}`` for a name given with or without its collection.

    Raises:
        InvalidArgument: empty, or of another collection.
    """
    if _is_text(name):
        identity = name.removeprefix(f"{collection}/")
        if identity and "/" not in identity:
            return f"{collection}/{identity}"
    raise InvalidArgument.of_field("name", name, f"must be {collection}/{{id}} or the id alone")


def checked_size(field: str, message: Message) -> None:
    """Refuse a message that the other side would not take.

    Raises:
        MessageTooLarge: names ``field`` and the size in bytes.
    """
    size = message.ByteSize()
    if size > MESSAGE_BYTES_MAX - _FRAMING_BYTES:
        raise MessageTooLarge.of_field(field, f"{size} bytes", f"a message has at most {MESSAGE_BYTES_MAX} bytes")


def block_counts(layout: WorkerLayout | None) -> BlockCounts | None:
    """How many blocks there are, as :func:`checked_blocks` takes it; None without a declared layout."""
    return None if layout is None else {group.name: layout.block_count(group.name) for group in layout.groups}


def checked_blocks(field: str, blocks: Blocks, counts: BlockCounts | None) -> list[layout_pb2.BlockList]:
    """Block lists by group, in wire form.

    Raises:
        InvalidArgument: no blocks, an unknown group, no group given where the layout has several, or ids that are no
            integers.
        BlockError: an id is negative, out of range or listed twice; names its position and value.
    """
    # Before asking for a mapping, which takes long where there is none.
    if isinstance(blocks, list) or not isinstance(blocks, Mapping):
        blocks = {_only_group(field, counts): blocks}
    if not blocks:
        raise InvalidArgument.of_field(field, "{}", "must list at least one block")
    lists = []
    for group, given in blocks.items():
        bound = _block_count(field, group, counts)
        ids = _checked_ids(f"{field}[{group}]", given, bound)
        lists.append(block_list(group, ids))
    return lists


def _is_text(value: object) -> bool:
    """A look that type checkers cannot take, at what a caller without one passed."""
    return isinstance(value, str)


def _only_group(field: str, counts: BlockCounts | None) -> str:
    if counts is None:
        raise InvalidArgument.of_field(field, "a plain list", "without a declared layout, give block ids by group")
    if len(counts) != 1:
        raise InvalidArgument.of_field(
            field, "a plain list", f"the layout has the groups {list(counts)}: give ids by group"
        )
    (only,) = counts
    return only


def _block_count(field: str, group: str, counts: BlockCounts | None) -> int:
    if counts is None:
        return BLOCKS_MAX
    if group not in counts:
        raise InvalidArgument.of_field(f"{field}.group", group, f"the layout has the groups {list(counts)}")
    return counts[group]


def _checked_ids(field: str, given: BlockIds, bound: int) -> npt.NDArray[np.int64]:
    ids = _integers(field, given, bound)
    if not ids.size:
        raise InvalidArgument.of_field(field, "[]", "must list at least one block")
    # Seen as unsigned, what is negative is beyond every bound.
    if int(np.maximum.reduce(ids.view(np.uint64))) >= bound:
        raise _out_of_range(field, ids.tolist(), bound)
    if has_repeated(ids, bound):
        twice = next(block for block, count in Counter(ids.tolist()).items() if count > 1)
        raise BlockError.of_field(field, twice, "block listed twice", reason=Reason.BLOCK_DUPLICATE)
    return ids


def _out_of_range(field: str, ids: list[int], bound: int) -> BlockError:
    position = next(i for i, block in enumerate(ids) if not 0 <= block < bound)
    return BlockError.of_field(f"{field}[{position}]", ids[position], f"block ids are 0 to {bound - 1}")


def _integers(field: str, given: BlockIds, bound: int) -> npt.NDArray[np.int64]:
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype in _SAFE_TYPES:
        return given.astype(np.int64)
    ids = _listed(field, given)
    try:
        # Twice as fast as what numpy makes of a list by itself.
        return np.array(array("I", ids), dtype=np.int64)
    except OverflowError:
        raise _out_of_range(field, ids, bound) from None


def _listed(field: str, given: BlockIds) -> list[int]:
    ids: list[Any] = given if isinstance(given, list) else _converted(field, given)
    if list(map(type, ids)).count(int) == len(ids):
        return ids
    for position, block in enumerate(ids):
        if isinstance(block, bool) or not isinstance(block, SupportsIndex):
            raise InvalidArgument.of_field(f"{field}[{position}]", block, "must be an integer")
    return [operator.index(block) for block in ids]


def _converted(field: str, given: BlockIds) -> list[Any]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidArgument.of_field(field, type(given).__name__, "must be a sequence of block ids")
    # Arrays and tensors convert themselves, and much faster than item by item.
    to_list = getattr(given, "tolist", None)
    ids = to_list() if to_list is not None else list(given)
    if not isinstance(ids, list):
        raise InvalidArgument.of_field(field, ids, "must be one-dimensional")
    return ids


def checked_path(socket_path: str | os.PathLike[str]) -> str:
    """The path of a Unix socket.

    Raises:
        ConfigInvalid: it is longer than the kernel takes.
    """
    path = os.fspath(socket_path)
    length = len(os.fsencode(path))
    if not 1 <= length <= SOCKET_PATH_BYTES_MAX:
        raise ConfigInvalid.of_field("socket_path", path, f"must have 1 to {SOCKET_PATH_BYTES_MAX} bytes")
    return path
