"""One rank's multi-head latent attention (MLA) of one layer."""

import math

import torch
from torch.nn import functional

from kvferry.reference_engine.attention import RotaryTable, causal_attention
from kvferry.reference_engine.paged_kv import KVSlots, LayerKV
from kvferry.reference_engine.weights import LatentShard


class LatentAttention:
    """A token's KV is one latent and one rotary key for all heads, the same on every rank.

    Queries are taken to the latent's space, so that keys and values are never made of it: all heads of the rank attend
    to one KV head, whose keys are latent and rotary key together and whose values are the latent. As elsewhere, what is
    stored is not rotated.
    """

    def __init__(self, weights: LatentShard, kv: LayerKV, rotary: RotaryTable, window: int) -> None:
        self._weights = weights
        self._kv = kv
        self._rotary = rotary
        self._window = window
        self._heads, self._dim, self._latent_dim = weights.key_up.shape
        self._rope_dim = kv.dim - self._latent_dim

    def __call__(self, normed: torch.Tensor, slots: KVSlots) -> torch.Tensor:
        """Store the new tokens' latents, attend; the rank's partial output [tokens, hidden]."""
        weights, tokens = self._weights, normed.shape[0]
        self._kv.write(slots, functional.linear(normed, weights.latent)[:, None])
        (stored,) = self._kv.read(slots)
        latents, rotary_keys = torch.split(stored.to(normed.dtype), [self._latent_dim, self._rope_dim], dim=-1)
        queries = functional.linear(normed, weights.query).view(tokens, self._heads, self._dim + self._rope_dim)
        contents, rotary_queries = torch.split(queries, [self._dim, self._rope_dim], dim=-1)
        attended = causal_attention(
            torch.cat(
                [
                    torch.einsum("thd,hdl->thl", contents, weights.key_up),
                    self._rotary.rotate(rotary_queries, slots.start),
                ],
                dim=-1,
            ),
            torch.cat([latents, self._rotary.rotate(rotary_keys, slots.first)], dim=-1),
            latents,
            scale=1 / math.sqrt(self._dim + self._rope_dim),
            window=self._window,
        )
        values = torch.einsum("thl,hdl->thd", attended, weights.value_up)
        return functional.linear(values.flatten(1), weights.attention_out)
