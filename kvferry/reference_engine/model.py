"""The decoder: per-rank shards that yield partial sums, and the whole that adds them up."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add

import torch
from torch.nn import functional

from kvferry.core.errors import InvalidArgument
from kvferry.reference_engine.attention import RotaryTable
from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.grouped_query import GroupedQueryAttention
from kvferry.reference_engine.latent import LatentAttention
from kvferry.reference_engine.paged_kv import KVSlots, LayerKV, RankKV, kv_dtype
from kvferry.reference_engine.parallelism import Parallelism, RankShare, rank_shares
from kvferry.reference_engine.weights import (
    compute_dtype,
    grouped_shard,
    latent_shard,
    mlp_shard,
    replicated_weights,
)

BlockTables = Mapping[str, Sequence[int]]
"""A sequence's block ids by layer group, in order of position."""


class ModelShard:
    """One rank, on its KV's device: its layers, heads, KV heads and MLP columns.

    Raises:
        InvalidArgument: `kv` is not shaped for this rank.
    """

    def __init__(self, config: ModelConfig, share: RankShare, kv: RankKV) -> None:
        _check_kv(config, share, kv)
        self.layers = share.layers
        self.device = next(iter(kv.values())).device
        self._config = config
        self._kv = kv
        self._rotary = RotaryTable(config, config.mla_rope_dim or config.head_dim, compute_dtype(config), self.device)
        self._mlps = {layer: mlp_shard(config, layer, share, self.device) for layer in share.layers}
        self._attentions = {
            layer: self._attention_of(layer, share, kv[group].layer(index))
            for group, layers in share.layer_groups(config).items()
            for index, layer in enumerate(layers)
        }

    def slots(self, tables: BlockTables, start: int, tokens: int) -> dict[str, KVSlots]:
        """Where this rank reads and writes in a step, by layer group."""
        return {
            group: kv.slots(tables[group], start, tokens, self._config.window_of(group))
            for group, kv in self._kv.items()
        }

    def attention(self, layer: int, normed: torch.Tensor, slots: Mapping[str, KVSlots]) -> torch.Tensor:
        """Write the new tokens' KV, attend to what the layer sees; the rank's partial output [tokens, hidden].

        Attention reads back what was stored. So it sees KV as rounded to the KV element type also for tokens of this
        very step, and the result does not depend on which step, or which process, computed them.
        """
        return self._attentions[layer](normed.to(self.device), slots[self._config.group_of(layer)])

    def mlp(self, layer: int, normed: torch.Tensor) -> torch.Tensor:
        """The rank's partial MLP output [tokens, hidden]."""
        weights = self._mlps[layer]
        gate, up = functional.linear(normed.to(self.device), weights.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, weights.down)

    def _attention_of(self, layer: int, share: RankShare, kv: LayerKV) -> GroupedQueryAttention | LatentAttention:
        config, rotary = self._config, self._rotary
        window = config.window_of(config.group_of(layer))
        if config.is_mla:
            return LatentAttention(latent_shard(config, layer, share, self.device), kv, rotary, window)
        return GroupedQueryAttention(grouped_shard(config, layer, share, self.device), kv, rotary, window)


class Decoder:
    """All ranks of one worker in this process. What is not split runs on the first rank's device.

    `kv` holds one mapping for each rank, in rank order. All ranks use the same block ids.

    Raises:
        InvalidArgument: degrees that do not fit the config, or KV of a wrong or uneven shape.
    """

    def __init__(self, config: ModelConfig, kv: Sequence[RankKV], parallelism: Parallelism) -> None:
        shares = rank_shares(config, parallelism)
        if len(kv) != len(shares):
            raise InvalidArgument.of_field("kv", f"{len(kv)} ranks", f"{parallelism} has {len(shares)}")
        self._config = config
        self._shards = [ModelShard(config, share, rank_kv) for share, rank_kv in zip(shares, kv, strict=True)]
        _check_blocks_alike(kv)
        self._device = self._shards[0].device
        self._weights = replicated_weights(config, self._device)

    def forward(self, tokens: Sequence[int], start: int, tables: BlockTables) -> torch.Tensor:
        """Run `tokens` at positions `start`.. of the sequence in `tables`; logits [vocab] after the last."""
        with torch.inference_mode():
            slots = [shard.slots(tables, start, len(tokens)) for shard in self._shards]
            hidden = self._weights.embedding[torch.tensor(tokens, dtype=torch.int64, device=self._device)]
            for layer in range(self._config.num_layers):
                stage = [(shard, s) for shard, s in zip(self._shards, slots, strict=True) if layer in shard.layers]
                normed = self._norm(hidden, self._weights.attention_norms[layer])
                hidden = hidden + self._all_reduce(shard.attention(layer, normed, s) for shard, s in stage)
                normed = self._norm(hidden, self._weights.mlp_norms[layer])
                hidden = hidden + self._all_reduce(shard.mlp(layer, normed) for shard, _ in stage)
            last = self._norm(hidden[-1], self._weights.final_norm)
            return functional.linear(last, self._weights.head)

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self._config.norm_epsilon)

    def _all_reduce(self, partials: Iterable[torch.Tensor]) -> torch.Tensor:
        """Sum in rank order: floating point addition must not depend on who is ready first."""
        return reduce(add, (partial.to(self._device) for partial in partials))


def _check_kv(config: ModelConfig, share: RankShare, kv: RankKV) -> None:
    groups = share.layer_groups(config)
    if set(kv) != set(groups):
        raise InvalidArgument.of_field(f"kv[{share.rank}]", sorted(kv), f"the rank has the groups {sorted(groups)}")
    for group, layers in groups.items():
        expected = {
            "dtype": kv_dtype(config),
            "num_layers": len(layers),
            "kv_factor": config.kv_factor,
            "num_kv_heads": len(share.kv_heads),
            "kv_dim": config.kv_dim,
        }
        for field, value in expected.items():
            actual = getattr(kv[group], field)
            if actual != value:
                raise InvalidArgument.of_field(f"kv[{share.rank}][{group}].{field}", actual, f"the rank has {value}")


def _check_blocks_alike(kv: Sequence[RankKV]) -> None:
    """Refuse ranks that differ in the number or size of a group's blocks."""
    first: dict[str, tuple[int, int]] = {}
    for rank, rank_kv in enumerate(kv):
        for group, paged in rank_kv.items():
            expected = first.setdefault(group, (paged.num_blocks, paged.block_tokens))
            for field, value in zip(("num_blocks", "block_tokens"), expected, strict=True):
                if getattr(paged, field) != value:
                    where = f"kv[{rank}][{group}].{field}"
                    raise InvalidArgument.of_field(where, getattr(paged, field), f"an earlier rank has {value}")
