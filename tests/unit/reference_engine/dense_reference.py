"""The decoder's mathematics once more, for whole sequences: no pages, ranks or chunks, one head at a time.

It shares the weights with the engine and nothing else.
"""

import math
from collections.abc import Sequence

import torch

from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.parallelism import Parallelism, rank_shares
from kvferry.reference_engine.weights import LatentShard, grouped_shard, latent_shard, mlp_shard, replicated_weights

KV_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def dense_logits(config: ModelConfig, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [tokens, vocab] in float64 after every position."""
    cpu = torch.device("cpu")
    weights = replicated_weights(config, cpu)
    hidden = weights.embedding.double()[list(tokens)]
    for layer in range(config.num_layers):
        (whole,) = rank_shares(config, Parallelism())
        shard = mlp_shard(config, layer, whole, cpu)
        attention = (
            latent_shard(config, layer, whole, cpu) if config.is_mla else grouped_shard(config, layer, whole, cpu)
        )
        normed = _rms_norm(hidden, weights.attention_norms[layer].double(), config.norm_epsilon)
        window = config.window_tokens if layer % 2 else 0
        if isinstance(attention, LatentShard):
            attended = _latent_attention(config, normed, attention, window)
        else:
            attended = _attention(config, normed @ attention.qkv.double().T, window)
        hidden = hidden + attended @ attention.attention_out.double().T
        normed = _rms_norm(hidden, weights.mlp_norms[layer].double(), config.norm_epsilon)
        gate_up = normed @ shard.gate_up.double().T
        gate, up = gate_up[:, : config.mlp_size], gate_up[:, config.mlp_size :]
        hidden = hidden + (gate * torch.sigmoid(gate) * up) @ shard.down.double().T
    return _rms_norm(hidden, weights.final_norm.double(), config.norm_epsilon) @ weights.head.double().T


def dense_next_tokens(config: ModelConfig, tokens: Sequence[int], count: int) -> list[int]:
    """The most likely successors of the last `count` positions."""
    return [int(row.argmax()) for row in dense_logits(config, tokens)[-count:]]


def _attention(config: ModelConfig, qkv: torch.Tensor, window: int) -> torch.Tensor:
    dim, q_heads, kv_heads = config.head_dim, config.num_heads, config.num_kv_heads
    heads = [qkv[:, start : start + dim] for start in range(0, qkv.shape[1], dim)]
    queries, keys, values = heads[:q_heads], heads[q_heads : q_heads + kv_heads], heads[q_heads + kv_heads :]
    outputs = []
    for head, query in enumerate(queries):
        kv_head = head * kv_heads // q_heads
        key, value = _stored(config, keys[kv_head]), _stored(config, values[kv_head])
        scores = _rope(config, query) @ _rope(config, key).T / math.sqrt(dim)
        outputs.append(_masked_softmax(scores, window) @ value)
    return torch.cat(outputs, dim=1)


def _latent_attention(config: ModelConfig, normed: torch.Tensor, weights: LatentShard, window: int) -> torch.Tensor:
    """Keys and values of every head are made of the stored latents, as MLA is defined."""
    dim, rope, latent_dim = config.head_dim, config.mla_rope_dim, config.mla_latent_dim
    stored = _stored(config, normed @ weights.latent.double().T)
    latents, rotary_key = stored[:, :latent_dim], _rope(config, stored[:, latent_dim:])
    queries = normed @ weights.query.double().T
    outputs = []
    for head in range(config.num_heads):
        query = queries[:, head * (dim + rope) : (head + 1) * (dim + rope)]
        keys = torch.cat([latents @ weights.key_up[head].double().T, rotary_key], dim=1)
        rotated = torch.cat([query[:, :dim], _rope(config, query[:, dim:])], dim=1)
        scores = rotated @ keys.T / math.sqrt(dim + rope)
        outputs.append(_masked_softmax(scores, window) @ (latents @ weights.value_up[head].double().T))
    return torch.cat(outputs, dim=1)


def _stored(config: ModelConfig, values: torch.Tensor) -> torch.Tensor:
    return values.to(KV_DTYPES[config.kv_dtype]).double()


def _masked_softmax(scores: torch.Tensor, window: int) -> torch.Tensor:
    position = torch.arange(len(scores))
    behind = position[:, None] - position[None, :]
    unseen = (behind < 0) | (behind >= window) if window else behind < 0
    return scores.masked_fill(unseen, -math.inf).softmax(-1)


def _rope(config: ModelConfig, head: torch.Tensor) -> torch.Tensor:
    """Rotary embedding as a product of complex numbers: number i pairs with the one half the width on."""
    half = head.shape[1] // 2
    frequencies = torch.tensor([config.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64)
    angles = torch.arange(len(head), dtype=torch.float64)[:, None] * frequencies
    turned = torch.complex(head[:, :half], head[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=1)


def _rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight
