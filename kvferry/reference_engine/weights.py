"""Seeded random weights, cut to what one tensor parallel rank holds.

Every tensor is drawn on its own, from a seed made of the config's seed and the tensor's name, always whole
and always on the CPU. A rank then keeps its rows or columns. So the weights are the same for every rank count
and device, and a process that holds only some layers need not draw the others.
"""

import hashlib
import math
from dataclasses import dataclass

import torch

from kvferry.reference_engine.config import ModelConfig

_COMPUTE_DTYPES = {"float64": torch.float64, "float32": torch.float32}
# With unit gain a random model attends to all of a long context alike, and its tokens hardly depend on any
# one block. At this gain attention scores have a standard deviation of about 6: a few positions win, and a
# wrong block shows.
_QUERY_KEY_GAIN = 2.5


@dataclass(frozen=True, slots=True)
class ReplicatedWeights:
    """What every rank holds whole: embedding and head [vocab, hidden], norms [hidden] in order of use."""

    embedding: torch.Tensor
    attention_norms: tuple[torch.Tensor, ...]
    mlp_norms: tuple[torch.Tensor, ...]
    final_norm: torch.Tensor
    head: torch.Tensor


@dataclass(frozen=True, slots=True)
class LayerShard:
    """One rank's part of a layer, as [out, in] matrices.

    qkv: [(heads + 2 * kv_heads) * head_dim, hidden]; attention_out: [hidden, heads * head_dim];
    gate_up: [2 * mlp_columns, hidden]; down: [hidden, mlp_columns].
    """

    qkv: torch.Tensor
    attention_out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def compute_dtype(config: ModelConfig) -> torch.dtype:
    """The torch type of `config.compute_dtype`."""
    return _COMPUTE_DTYPES[config.compute_dtype]


def replicated_weights(config: ModelConfig, device: torch.device) -> ReplicatedWeights:
    """The weights that are not split, on `device`."""
    layers = range(config.num_layers)
    vocab_by_hidden = (config.vocab_size, config.hidden_size)
    return ReplicatedWeights(
        embedding=_place(config, _draw(config, "embedding", vocab_by_hidden, std=1.0), device),
        attention_norms=tuple(_norm(config, f"layers.{layer}.attention_norm", device) for layer in layers),
        mlp_norms=tuple(_norm(config, f"layers.{layer}.mlp_norm", device) for layer in layers),
        final_norm=_norm(config, "final_norm", device),
        head=_place(config, _projection(config, "head", vocab_by_hidden), device),
    )


def layer_shard(config: ModelConfig, layer: int, rank: int, tp_degree: int, device: torch.device) -> LayerShard:
    """The part of `layer` that `rank` of `tp_degree` holds, on `device`.

    Ranks hold consecutive heads; query head h reads KV head h // (num_heads / num_kv_heads), so a rank's
    query heads need only its own KV heads.
    """
    name = f"layers.{layer}"
    hidden = config.hidden_size
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim

    def part(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return tensor.chunk(tp_degree, dim)[rank]

    def rows(field: str, size: int, gain: float = 1.0) -> torch.Tensor:
        return part(_projection(config, f"{name}.{field}", (size, hidden), gain), 0)

    def columns(field: str, size: int) -> torch.Tensor:
        return part(_projection(config, f"{name}.{field}", (hidden, size)), 1)

    qkv = torch.cat([rows("q", q_size, _QUERY_KEY_GAIN), rows("k", kv_size, _QUERY_KEY_GAIN), rows("v", kv_size)])
    gate_up = torch.cat([rows("gate", config.mlp_size), rows("up", config.mlp_size)])
    return LayerShard(
        qkv=_place(config, qkv, device),
        attention_out=_place(config, columns("attention_out", q_size), device),
        gate_up=_place(config, gate_up, device),
        down=_place(config, columns("down", config.mlp_size), device),
    )


def _projection(config: ModelConfig, name: str, shape: tuple[int, int], gain: float = 1.0) -> torch.Tensor:
    return _draw(config, name, shape, std=gain / math.sqrt(shape[1]))


def _norm(config: ModelConfig, name: str, device: torch.device) -> torch.Tensor:
    return _place(config, 1.0 + _draw(config, name, (config.hidden_size,), std=0.1), device)


def _draw(config: ModelConfig, name: str, shape: tuple[int, ...], *, std: float) -> torch.Tensor:
    """Float32 noise of mean 0; uniform, since normal draws use log and cos, whose last bits vary by CPU."""
    digest = hashlib.blake2b(f"{config.weight_seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "big") >> 1)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return (2.0 * uniform - 1.0) * (math.sqrt(3.0) * std)


def _place(config: ModelConfig, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(compute_dtype(config)).to(device).contiguous()
