"""Rotary positions and causal grouped-query attention over gathered keys and values."""

import math

import torch

from kvferry.reference_engine.config import ModelConfig

# Bounds the score matrix to heads * 256 * context, and skips the future half of it in long prefills.
QUERY_CHUNK_TOKENS = 256


class RotaryTable:
    """Cosines and sines of every position up to `config.max_tokens`, each [max_tokens, head_dim / 2]."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        half = config.head_dim // 2
        frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(config.max_tokens, dtype=torch.float64), frequencies)
        self._cos = angles.cos().to(dtype).to(device)
        self._sin = angles.sin().to(dtype).to(device)

    def rotate(self, heads: torch.Tensor, start: int) -> torch.Tensor:
        """Turn `heads` [tokens, heads, head_dim], whose first token stands at position `start`."""
        positions = slice(start, start + heads.shape[0])
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def causal_attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int) -> torch.Tensor:
    """Attend from queries [tokens, heads, head_dim] to keys and values [context, kv_heads, head_dim].

    The queries are positions `start` to context - 1, so the context holds their own keys too. Returns
    [tokens, heads * head_dim].
    """
    tokens, heads, head_dim = queries.shape
    context, kv_heads, _ = keys.shape
    if context != start + tokens:
        raise ValueError(f"context of {context} positions for {tokens} queries from position {start}")
    by_kv_head = (queries / math.sqrt(head_dim)).view(tokens, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    keys, values = keys.permute(1, 2, 0), values.transpose(0, 1)
    chunks = []
    for first in range(0, tokens, QUERY_CHUNK_TOKENS):
        last = min(first + QUERY_CHUNK_TOKENS, tokens)
        visible = start + last
        chunks.append(_attend(by_kv_head[:, :, first:last], keys[..., :visible], values[:, :visible]))
    return torch.cat(chunks, dim=2).permute(2, 0, 1, 3).reshape(tokens, heads * head_dim)


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """queries [kv_heads, group, tokens, dim] that are the last positions of keys [kv_heads, dim, context]."""
    kv_heads, group, tokens, head_dim = queries.shape
    context = keys.shape[-1]
    scores = torch.bmm(queries.reshape(kv_heads, group * tokens, head_dim), keys)
    if tokens > 1:
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu_(1)
        scores.view(kv_heads, group, tokens, context)[..., context - tokens :].masked_fill_(future, -math.inf)
    attended = torch.bmm(torch.softmax(scores, dim=-1), values)
    return attended.view(kv_heads, group, tokens, head_dim)
