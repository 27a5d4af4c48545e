"""The decoder's mathematics once more, for whole sequences: no pages, ranks or chunks, one head at a time.

It shares the weights with the engine and nothing else.
"""

import math
from collections.abc import Sequence

import torch

from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.weights import layer_shard, replicated_weights

KV_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def dense_logits(config: ModelConfig, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [tokens, vocab] in float64 after every position."""
    cpu = torch.device("cpu")
    weights = replicated_weights(config, cpu)
    hidden = weights.embedding.double()[list(tokens)]
    for layer in range(config.num_layers):
        shard = layer_shard(config, layer, 0, 1, cpu)
        normed = _rms_norm(hidden, weights.attention_norms[layer].double(), config.norm_epsilon)
        hidden = hidden + _attention(config, normed @ shard.qkv.double().T) @ shard.attention_out.double().T
        normed = _rms_norm(hidden, weights.mlp_norms[layer].double(), config.norm_epsilon)
        gate_up = normed @ shard.gate_up.double().T
        gate, up = gate_up[:, : config.mlp_size], gate_up[:, config.mlp_size :]
        hidden = hidden + (gate * torch.sigmoid(gate) * up) @ shard.down.double().T
    return _rms_norm(hidden, weights.final_norm.double(), config.norm_epsilon) @ weights.head.double().T


def dense_next_tokens(config: ModelConfig, tokens: Sequence[int], count: int) -> list[int]:
    """The most likely successors of the last `count` positions."""
    return [int(row.argmax()) for row in dense_logits(config, tokens)[-count:]]


def _attention(config: ModelConfig, qkv: torch.Tensor) -> torch.Tensor:
    dim, q_heads, kv_heads = config.head_dim, config.num_heads, config.num_kv_heads
    heads = [qkv[:, start : start + dim] for start in range(0, qkv.shape[1], dim)]
    queries, keys, values = heads[:q_heads], heads[q_heads : q_heads + kv_heads], heads[q_heads + kv_heads :]
    stored = KV_DTYPES[config.kv_dtype]
    outputs = []
    for head, query in enumerate(queries):
        kv_head = head * kv_heads // q_heads
        key, value = keys[kv_head].to(stored).double(), values[kv_head].to(stored).double()
        scores = _rope(config, query) @ _rope(config, key).T / math.sqrt(dim)
        future = torch.arange(len(key))[None, :] > torch.arange(len(query))[:, None]
        outputs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value)
    return torch.cat(outputs, dim=1)


def _rope(config: ModelConfig, head: torch.Tensor) -> torch.Tensor:
    """Rotary embedding as a product of complex numbers: dimension i pairs with i + head_dim / 2."""
    half = config.head_dim // 2
    frequencies = torch.tensor([config.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64)
    angles = torch.arange(len(head), dtype=torch.float64)[:, None] * frequencies
    turned = torch.complex(head[:, :half], head[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=1)


def _rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight
