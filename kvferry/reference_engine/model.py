"""The decoder: per-rank shards that yield partial sums, and the whole that adds them up."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add

import torch
from torch.nn import functional

from kvferry.core.errors import InvalidArgument
from kvferry.reference_engine.attention import RotaryTable, causal_attention
from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.paged_kv import KVSlots, PagedKV, kv_dtype
from kvferry.reference_engine.weights import compute_dtype, layer_shard, replicated_weights


class ModelShard:
    """One tensor parallel rank, on its KV's device: its heads, KV heads and MLP columns.

    Raises:
        InvalidArgument: the degree or the rank does not fit the config, or `kv` is not shaped for this rank.
    """

    def __init__(self, config: ModelConfig, rank: int, tp_degree: int, kv: PagedKV) -> None:
        config.check_tp_degree(tp_degree)
        if not 0 <= rank < tp_degree:
            raise InvalidArgument.of_field("rank", rank, f"not from 0 to {tp_degree - 1}")
        _check_kv_shape(config, tp_degree, kv)
        self.kv = kv
        self._head_dim = config.head_dim
        self._num_heads = config.num_heads // tp_degree
        self._num_kv_heads = kv.num_kv_heads
        self._dtype = compute_dtype(config)
        self._rotary = RotaryTable(config, self._dtype, kv.device)
        self._layers = [layer_shard(config, layer, rank, tp_degree, kv.device) for layer in range(config.num_layers)]

    def attention(self, layer: int, normed: torch.Tensor, slots: KVSlots) -> torch.Tensor:
        """Write the new tokens' KV, attend to the whole context; the rank's partial output [tokens, hidden].

        Attention reads back what was stored. So it sees keys and values as rounded to the KV element type
        also for tokens of this very step, and the result does not depend on which step, or which process,
        computed them.

        Keys are stored without their position and rotated when read. Attention over stored rotated keys
        would give the same sum for any order of the blocks, and tokens could not tell two swapped blocks.
        """
        weights = self._layers[layer]
        projected = functional.linear(normed, weights.qkv).view(normed.shape[0], -1, self._head_dim)
        heads = [self._num_heads, self._num_kv_heads, self._num_kv_heads]
        queries, keys, values = torch.split(projected, heads, dim=1)
        self.kv.write(layer, slots, keys, values)
        stored_keys, stored_values = (stored.to(self._dtype) for stored in self.kv.read(layer, slots))
        attended = causal_attention(
            self._rotary.rotate(queries, slots.start),
            self._rotary.rotate(stored_keys, 0),
            stored_values,
            slots.start,
        )
        return functional.linear(attended, weights.attention_out)

    def mlp(self, layer: int, normed: torch.Tensor) -> torch.Tensor:
        """The rank's partial MLP output [tokens, hidden]."""
        weights = self._layers[layer]
        gate, up = functional.linear(normed, weights.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, weights.down)


class Decoder:
    """All ranks of one worker in this process. What is not split runs on the first rank's device.

    `kv` holds one PagedKV per rank, in rank order; its length is the tensor parallel degree. All ranks use
    the same block ids.

    Raises:
        InvalidArgument: no KV, a degree that does not fit the config, or KV of a wrong or uneven shape.
    """

    def __init__(self, config: ModelConfig, kv: Sequence[PagedKV]) -> None:
        if not kv:
            raise InvalidArgument.of_field("kv", [], "no rank")
        for field in ("num_blocks", "block_tokens"):
            for rank, rank_kv in enumerate(kv):
                if getattr(rank_kv, field) != getattr(kv[0], field):
                    raise InvalidArgument.of_field(f"kv[{rank}].{field}", getattr(rank_kv, field), "not that of rank 0")
        self._config = config
        self._shards = [ModelShard(config, rank, len(kv), rank_kv) for rank, rank_kv in enumerate(kv)]
        self._device = kv[0].device
        self._weights = replicated_weights(config, self._device)

    def forward(self, tokens: Sequence[int], start: int, blocks: Sequence[int]) -> torch.Tensor:
        """Run `tokens` at positions `start`.. of the sequence in `blocks`; logits [vocab] after the last."""
        with torch.inference_mode():
            slots = [shard.kv.slots(blocks, start, len(tokens)) for shard in self._shards]
            hidden = self._weights.embedding[torch.tensor(tokens, dtype=torch.int64, device=self._device)]
            for layer in range(self._config.num_layers):
                normed = self._norm(hidden, self._weights.attention_norms[layer])
                hidden = hidden + self._all_reduce(
                    shard.attention(layer, normed.to(shard.kv.device), shard_slots)
                    for shard, shard_slots in zip(self._shards, slots, strict=True)
                )
                normed = self._norm(hidden, self._weights.mlp_norms[layer])
                hidden = hidden + self._all_reduce(
                    shard.mlp(layer, normed.to(shard.kv.device)) for shard in self._shards
                )
            last = self._norm(hidden[-1], self._weights.final_norm)
            return functional.linear(last, self._weights.head)

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self._config.norm_epsilon)

    def _all_reduce(self, partials: Iterable[torch.Tensor]) -> torch.Tensor:
        """Sum in rank order: floating point addition must not depend on who is ready first."""
        return reduce(add, (partial.to(self._device) for partial in partials))


def _check_kv_shape(config: ModelConfig, tp_degree: int, kv: PagedKV) -> None:
    if kv.dtype != kv_dtype(config):
        raise InvalidArgument.of_field("kv.dtype", kv.dtype, f"the model stores {config.kv_dtype}")
    expected = {
        "num_layers": config.num_layers,
        "num_kv_heads": config.num_kv_heads // tp_degree,
        "head_dim": config.head_dim,
    }
    for field, value in expected.items():
        if getattr(kv, field) != value:
            raise InvalidArgument.of_field(
                f"kv.{field}", getattr(kv, field), f"the model has {value} at tp_degree={tp_degree}"
            )
