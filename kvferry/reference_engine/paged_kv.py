"""One rank's paged KV cache: reads and writes through a view of memory that somebody else owns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvferry.core.errors import BlockError, InvalidArgument
from kvferry.core.reasons import Reason
from kvferry.reference_engine.config import ModelConfig

_VIEW_DIMS = ("layer", "block", "kv", "token", "head", "dim")
_KEYS_AND_VALUES = 2
_KV_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def kv_dtype(config: ModelConfig) -> torch.dtype:
    """The torch type of `config.kv_dtype`."""
    return _KV_DTYPES[config.kv_dtype]


def blocks_needed(tokens: int, block_tokens: int) -> int:
    """Blocks that `tokens` tokens take up, the last one perhaps in part."""
    return -(-tokens // block_tokens)


@dataclass(frozen=True, slots=True)
class KVSlots:
    """Where one step of one sequence reads and writes, as index tensors on the rank's device.

    table: [blocks] block ids that hold positions 0 to context - 1; write_blocks, write_offsets: [tokens]
    block id and offset in the block of each new token; start: position of the first new token; context: start
    + new tokens.
    """

    table: torch.Tensor
    write_blocks: torch.Tensor
    write_offsets: torch.Tensor
    start: int
    context: int


class PagedKV:
    """Keys (kv index 0, not rotated) and values (kv index 1) of one rank, in place in the given view.

    `view` is indexed [layer, block, kv, token, head, dim] and may have any strides, so memory may be ordered
    in any way. Its type is the element type of the KV, its device is where this rank computes. Nothing is
    copied or kept beside it: the caller keeps the memory behind the view alive.

    Raises:
        InvalidArgument: the view has not six dimensions, not two for kv, an empty or
            overlapping one, or a wrong type.
    """

    def __init__(self, view: torch.Tensor) -> None:
        if view.dim() != len(_VIEW_DIMS):
            raise InvalidArgument.of_field("view.shape", tuple(view.shape), f"not indexed {list(_VIEW_DIMS)}")
        if view.shape[2] != _KEYS_AND_VALUES:
            raise InvalidArgument.of_field("view.shape[kv]", view.shape[2], "not 2, one for keys and one for values")
        if view.dtype not in _KV_DTYPES.values():
            raise InvalidArgument.of_field("view.dtype", view.dtype, f"not one of {', '.join(_KV_DTYPES)}")
        for name, size, stride in zip(_VIEW_DIMS, view.shape, view.stride(), strict=True):
            if size == 0:
                raise InvalidArgument.of_field(f"view.shape[{name}]", size, "empty")
            if size > 1 and stride == 0:
                raise InvalidArgument.of_field(
                    f"view.stride[{name}]", stride, "several entries share one place in memory"
                )
        self._view = view

    @property
    def device(self) -> torch.device:
        return self._view.device

    @property
    def dtype(self) -> torch.dtype:
        return self._view.dtype

    @property
    def num_layers(self) -> int:
        return self._view.shape[0]

    @property
    def num_blocks(self) -> int:
        return self._view.shape[1]

    @property
    def block_tokens(self) -> int:
        return self._view.shape[3]

    @property
    def num_kv_heads(self) -> int:
        return self._view.shape[4]

    @property
    def head_dim(self) -> int:
        return self._view.shape[5]

    def check_blocks(self, blocks: Sequence[int], tokens: int) -> None:
        """Refuse (BlockError) block ids out of range, given twice, or too few for `tokens` tokens."""
        seen: set[int] = set()
        for index, block in enumerate(blocks):
            field = f"blocks[{index}]"
            if type(block) is not int or not 0 <= block < self.num_blocks:
                raise BlockError.of_field(field, block, f"not a block id from 0 to {self.num_blocks - 1}")
            if block in seen:
                raise BlockError.of_field(field, block, "given twice", reason=Reason.BLOCK_DUPLICATE)
            seen.add(block)
        needed = blocks_needed(tokens, self.block_tokens)
        if len(blocks) < needed:
            raise BlockError.of_field(
                "blocks",
                len(blocks),
                f"{tokens} tokens need {needed} blocks of {self.block_tokens} tokens",
                reason=Reason.BLOCK_COUNT_MISMATCH,
            )

    def slots(self, blocks: Sequence[int], start: int, tokens: int) -> KVSlots:
        """Slots of `tokens` new tokens at positions `start`.. of the sequence in `blocks`."""
        context = start + tokens
        table = torch.tensor(blocks[: blocks_needed(context, self.block_tokens)], dtype=torch.int64, device=self.device)
        positions = torch.arange(start, context, device=self.device)
        return KVSlots(
            table=table,
            write_blocks=table[positions // self.block_tokens],
            write_offsets=positions % self.block_tokens,
            start=start,
            context=context,
        )

    def write(self, layer: int, slots: KVSlots, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values [tokens, kv_heads, head_dim] of the new tokens, rounded to `dtype`."""
        where = (slots.write_blocks, slots.write_offsets)
        self._view[layer, :, 0].index_put_(where, keys.to(self.dtype))
        self._view[layer, :, 1].index_put_(where, values.to(self.dtype))

    def read(self, layer: int, slots: KVSlots) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather keys and values of the whole context, each [context, kv_heads, head_dim] in `dtype`."""
        gathered = self._view[layer].index_select(0, slots.table)
        keys, values = (gathered[:, kv].flatten(0, 1)[: slots.context] for kv in (0, 1))
        return keys, values


def private_kv(
    config: ModelConfig, tp_degree: int, num_blocks: int, block_tokens: int, device: torch.device
) -> PagedKV:
    """One rank's PagedKV over zeroed memory of its own, for running without a pool."""
    kv_heads = config.num_kv_heads // tp_degree
    shape = (config.num_layers, num_blocks, 2, block_tokens, kv_heads, config.head_dim)
    return PagedKV(torch.zeros(shape, dtype=kv_dtype(config), device=device))
