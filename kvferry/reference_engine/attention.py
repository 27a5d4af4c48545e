"""Rotary positions and causal attention of grouped heads over gathered keys and values."""

import math

import torch

from kvferry.reference_engine.config import ModelConfig

# Bounds the score matrix to heads * 256 * context, and skips the future half of it in long prefills.
QUERY_CHUNK_TOKENS = 256


class RotaryTable:
    """Cosines and sines for `dim` numbers of every position up to `config.max_tokens`, each [max_tokens, dim / 2]."""

    def __init__(self, config: ModelConfig, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        half = dim // 2
        frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(config.max_tokens, dtype=torch.float64), frequencies)
        self._cos = angles.cos().to(dtype).to(device)
        self._sin = angles.sin().to(dtype).to(device)

    def rotate(self, heads: torch.Tensor, start: int) -> torch.Tensor:
        """Turn `heads` [tokens, heads, dim], whose first token stands at position `start`."""
        positions = slice(start, start + heads.shape[0])
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def causal_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, scale: float, window: int = 0
) -> torch.Tensor:
    """Attend from queries [tokens, heads, dim] to keys [context, kv_heads, dim], values [context, kv_heads, value_dim].

    The queries are the last positions of the context, so it holds their own keys too. A query sees the last
    `window` positions up to its own, or all with `window` 0. Returns [tokens, heads, value_dim].
    """
    tokens, heads, dim = queries.shape
    context, kv_heads, _ = keys.shape
    by_kv_head = (queries * scale).view(tokens, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)
    keys, values = keys.permute(1, 2, 0), values.transpose(0, 1)
    chunks = []
    for first in range(0, tokens, QUERY_CHUNK_TOKENS):
        last = min(first + QUERY_CHUNK_TOKENS, tokens)
        end = context - tokens + last
        begin = max(context - tokens + first + 1 - window, 0) if window else 0
        chunks.append(_attend(by_kv_head[:, :, first:last], keys[..., begin:end], values[:, begin:end], window))
    return torch.cat(chunks, dim=2).permute(2, 0, 1, 3).reshape(tokens, heads, -1)


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int) -> torch.Tensor:
    """queries [kv_heads, group, tokens, dim] that are the last positions of keys [kv_heads, dim, context]."""
    kv_heads, group, tokens, dim = queries.shape
    context = keys.shape[-1]
    scores = torch.bmm(queries.reshape(kv_heads, group * tokens, dim), keys)
    if tokens > 1:
        # How far each key lies behind each query.
        distance = torch.arange(context - tokens, context, device=scores.device)[:, None] - torch.arange(
            context, device=scores.device
        )
        unseen = (distance < 0) | (distance >= window) if window else distance < 0
        scores.view(kv_heads, group, tokens, context).masked_fill_(unseen, -math.inf)
    attended = torch.bmm(torch.softmax(scores, dim=-1), values)
    return attended.view(kv_heads, group, tokens, -1)
