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
from kvferry.reference_engine.parallelism import RankShare

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
class GroupedShard:
    """One rank's part of a layer's grouped-query attention, as [out, in] matrices.

    qkv: [(heads + 2 * kv_heads) * head_dim, hidden]; attention_out: [hidden, heads * head_dim].
    """

    qkv: torch.Tensor
    attention_out: torch.Tensor


@dataclass(frozen=True, slots=True)
class LatentShard:
    """One rank's part of a layer's MLA.

    query: [heads * (head_dim + rope_dim), hidden]; latent: [latent_dim + rope_dim, hidden], whole on every rank;
    key_up, value_up: [heads, head_dim, latent_dim]; attention_out: [hidden, heads * head_dim].
    """

    query: torch.Tensor
    latent: torch.Tensor
    key_up: torch.Tensor
    value_up: torch.Tensor
    attention_out: torch.Tensor


@dataclass(frozen=True, slots=True)
class MlpShard:
    """One rank's part of a layer's MLP: gate_up [2 * mlp_columns, hidden], down [hidden, mlp_columns]."""

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


def grouped_shard(config: ModelConfig, layer: int, share: RankShare, device: torch.device) -> GroupedShard:
    """The part of a layer's grouped-query attention that a rank holds, on `device`.

    Ranks hold consecutive heads; query head h reads KV head h // (num_heads / num_kv_heads), so a rank's
    query heads need only its own KV heads.
    """
    name, dim = f"layers.{layer}", config.head_dim
    query = _projection(config, f"{name}.q", (config.num_heads * dim, config.hidden_size), _QUERY_KEY_GAIN)
    kv_shape = (config.num_kv_heads * dim, config.hidden_size)
    held = slice(share.kv_heads.start * dim, share.kv_heads.stop * dim)
    keys = _projection(config, f"{name}.k", kv_shape, _QUERY_KEY_GAIN)[held]
    values = _projection(config, f"{name}.v", kv_shape)[held]
    return GroupedShard(
        qkv=_place(config, torch.cat([_part(query, 0, share), keys, values]), device),
        attention_out=_attention_out(config, name, share, device),
    )


def latent_shard(config: ModelConfig, layer: int, share: RankShare, device: torch.device) -> LatentShard:
    """The part of a layer's MLA that a rank holds, on `device`: consecutive heads, and the way to the latent whole."""
    name, hidden = f"layers.{layer}", config.hidden_size
    latent, rope = config.mla_latent_dim, config.mla_rope_dim
    query = _projection(
        config, f"{name}.q", (config.num_heads * (config.head_dim + rope), hidden), gain=_QUERY_KEY_GAIN
    )
    up_shape = (config.num_heads * config.head_dim, latent)
    down = _projection(config, f"{name}.latent", (latent, hidden))
    rotary = _projection(config, f"{name}.rotary_key", (rope, hidden), _QUERY_KEY_GAIN)

    def per_head(up: torch.Tensor) -> torch.Tensor:
        return _part(up.view(config.num_heads, config.head_dim, latent), 0, share)

    return LatentShard(
        query=_place(config, _part(query, 0, share), device),
        latent=_place(config, torch.cat([down, rotary]), device),
        key_up=_place(config, per_head(_projection(config, f"{name}.key_up", up_shape, _QUERY_KEY_GAIN)), device),
        value_up=_place(config, per_head(_projection(config, f"{name}.value_up", up_shape)), device),
        attention_out=_attention_out(config, name, share, device),
    )


def mlp_shard(config: ModelConfig, layer: int, share: RankShare, device: torch.device) -> MlpShard:
    """The part of a layer's MLP that a rank holds, on `device`: consecutive columns."""
    name, hidden = f"layers.{layer}", config.hidden_size
    gate, up = (_projection(config, f"{name}.{field}", (config.mlp_size, hidden)) for field in ("gate", "up"))
    down = _projection(config, f"{name}.down", (hidden, config.mlp_size))
    return MlpShard(
        gate_up=_place(config, torch.cat([_part(gate, 0, share), _part(up, 0, share)]), device),
        down=_place(config, _part(down, 1, share), device),
    )


def _attention_out(config: ModelConfig, name: str, share: RankShare, device: torch.device) -> torch.Tensor:
    whole = _projection(config, f"{name}.attention_out", (config.hidden_size, config.num_heads * config.head_dim))
    return _place(config, _part(whole, 1, share), device)


def _part(tensor: torch.Tensor, dim: int, share: RankShare) -> torch.Tensor:
    return tensor.chunk(share.tensor_degree, dim)[share.tensor_rank]


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
