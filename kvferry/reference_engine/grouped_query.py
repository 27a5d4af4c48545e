"""One rank's grouped-query attention of one layer."""

import math

import torch
from torch.nn import functional

from kvferry.reference_engine.attention import RotaryTable, causal_attention
from kvferry.reference_engine.paged_kv import KVSlots, LayerKV
from kvferry.reference_engine.weights import GroupedShard


class GroupedQueryAttention:
    """Keys and values of the rank's KV heads are stored, its query heads attend to them.

    Keys are stored without their position and rotated when read. Attention over stored rotated keys would give the
    same sum for any order of the blocks, and tokens could not tell two swapped blocks.
    """

    def __init__(self, weights: GroupedShard, kv: LayerKV, rotary: RotaryTable, window: int) -> None:
        self._weights = weights
        self._kv = kv
        self._rotary = rotary
        self._window = window
        self._dim = kv.dim
        self._heads = weights.attention_out.shape[1] // kv.dim

    def __call__(self, normed: torch.Tensor, slots: KVSlots) -> torch.Tensor:
        """Store the new tokens' keys and values, attend; the rank's partial output [tokens, hidden]."""
        projected = functional.linear(normed, self._weights.qkv).view(normed.shape[0], -1, self._dim)
        queries, keys, values = torch.split(projected, [self._heads, self._kv.heads, self._kv.heads], dim=1)
        self._kv.write(slots, keys, values)
        stored_keys, stored_values = (stored.to(normed.dtype) for stored in self._kv.read(slots))
        attended = causal_attention(
            self._rotary.rotate(queries, slots.start),
            self._rotary.rotate(stored_keys, slots.first),
            stored_values,
            scale=1 / math.sqrt(self._dim),
            window=self._window,
        )
        return functional.linear(attended.flatten(1), self._weights.attention_out)
