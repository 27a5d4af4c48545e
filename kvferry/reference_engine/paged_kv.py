"""One rank's paged KV cache: reads and writes through a view of memory that somebody else owns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from kvferry.core.errors import BlockError, InvalidArgument
from kvferry.core.reasons import Reason
from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.parallelism import RankShare

_VIEW_DIMS = ("layer", "block", "kv", "token", "head", "dim")
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

    table: [blocks] block ids that hold positions first to context - 1; write_blocks, write_offsets: [tokens]
    block id and offset in the block of each new token; first: position of the first token that is read, 0
    where there is no window; start: position of the first new token; context: start + new tokens.
    """

    table: torch.Tensor
    write_blocks: torch.Tensor
    write_offsets: torch.Tensor
    first: int
    start: int
    context: int


class PagedKV:
    """KV of one layer group on one rank, in place in the given view.

    kv index 0 holds keys, not rotated, and index 1 values; MLA has index 0 alone, for its latents.

    `view` is indexed [layer, block, kv, token, head, dim] and may have any strides, so memory may be ordered
    in any way. Its type is the element type of the KV, its device is where this rank computes. Nothing is
    copied or kept beside it: the caller keeps the memory behind the view alive.

    Raises:
        InvalidArgument: the view has not six dimensions, not one or two for kv, an empty
            or overlapping one, or a wrong type.
    """

    def __init__(self, view: torch.Tensor) -> None:
        if view.dim() != len(_VIEW_DIMS):
            raise InvalidArgument.of_field("view.shape", tuple(view.shape), f"not indexed {list(_VIEW_DIMS)}")
        if view.shape[2] not in (1, 2):
            raise InvalidArgument.of_field("view.shape[kv]", view.shape[2], "not 2 for keys and values, nor 1 for MLA")
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
    def kv_factor(self) -> int:
        return self._view.shape[2]

    @property
    def block_tokens(self) -> int:
        return self._view.shape[3]

    @property
    def num_kv_heads(self) -> int:
        return self._view.shape[4]

    @property
    def kv_dim(self) -> int:
        return self._view.shape[5]

    def check_blocks(self, blocks: Sequence[int], tokens: int, field: str = "blocks") -> None:
        """Refuse (BlockError) block ids out of range, given twice, or too few for `tokens` tokens."""
        seen: set[int] = set()
        for index, block in enumerate(blocks):
            where = f"{field}[{index}]"
            if type(block) is not int or not 0 <= block < self.num_blocks:
                raise BlockError.of_field(where, block, f"not a block id from 0 to {self.num_blocks - 1}")
            if block in seen:
                raise BlockError.of_field(where, block, "given twice", reason=Reason.BLOCK_DUPLICATE)
            seen.add(block)
        needed = blocks_needed(tokens, self.block_tokens)
        if len(blocks) < needed:
            raise BlockError.of_field(
                field,
                len(blocks),
                f"{tokens} tokens need {needed} blocks of {self.block_tokens} tokens",
                reason=Reason.BLOCK_COUNT_MISMATCH,
            )

    def slots(self, blocks: Sequence[int], start: int, tokens: int, window: int = 0) -> KVSlots:
        """Slots of `tokens` new tokens at positions `start`.. of the sequence in `blocks`.

        With `window`, only positions that the first of them sees, and later ones, are read.
        """
        context = start + tokens
        first = max(start + 1 - window, 0) if window else 0
        needed = blocks[: blocks_needed(context, self.block_tokens)]
        table = torch.tensor(needed, dtype=torch.int64, device=self.device)
        positions = torch.arange(start, context, device=self.device)
        return KVSlots(
            table=table[first // self.block_tokens :],
            write_blocks=table[positions // self.block_tokens],
            write_offsets=positions % self.block_tokens,
            first=first,
            start=start,
            context=context,
        )

    def layer(self, index: int) -> "LayerKV":
        """The KV of the rank's layer number `index` of this group."""
        return LayerKV(self._view[index])


class LayerKV:
    """KV of one layer on one rank: a view [block, kv, token, head, dim]."""

    def __init__(self, view: torch.Tensor) -> None:
        self._view = view

    @property
    def heads(self) -> int:
        return self._view.shape[3]

    @property
    def dim(self) -> int:
        return self._view.shape[4]

    def write(self, slots: KVSlots, *parts: torch.Tensor) -> None:
        """Store what the new tokens have for each kv index, [tokens, kv_heads, kv_dim], rounded to the KV's type."""
        for kv, part in enumerate(parts):
            self._view[:, kv].index_put_((slots.write_blocks, slots.write_offsets), part.to(self._view.dtype))

    def read(self, slots: KVSlots) -> tuple[torch.Tensor, ...]:
        """Gather positions first to context - 1 for each kv index, [tokens, kv_heads, kv_dim] in the KV's type."""
        gathered = self._view.index_select(0, slots.table)
        _, factor, block_tokens, _, _ = self._view.shape
        skipped = slots.first % block_tokens
        wanted = slice(skipped, skipped + slots.context - slots.first)
        return tuple(gathered[:, kv].flatten(0, 1)[wanted] for kv in range(factor))


RankKV = Mapping[str, PagedKV]
"""A rank's KV by layer group."""


def private_kv(
    config: ModelConfig, share: RankShare, num_blocks: int, block_tokens: int, device: torch.device
) -> dict[str, PagedKV]:
    """One rank's KV over zeroed memory of its own, for running without a pool."""
    inner = (num_blocks, config.kv_factor, block_tokens, len(share.kv_heads), config.kv_dim)
    return {
        group: PagedKV(torch.zeros((len(layers), *inner), dtype=kv_dtype(config), device=device))
        for group, layers in share.layer_groups(config).items()
    }
