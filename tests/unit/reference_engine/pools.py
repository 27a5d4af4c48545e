"""Flat byte pools, and a rank's KV in them as a layout describes it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvferry.core.dense import NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout, end_bytes
from kvferry.reference_engine.config import TINY, ModelConfig
from kvferry.reference_engine.generate import ReferenceEngine, generate_alone
from kvferry.reference_engine.paged_kv import PagedKV, kv_dtype
from kvferry.reference_engine.weights import layer_shard

SMALL = ModelConfig(num_layers=2, hidden_size=64, num_heads=8, num_kv_heads=4, head_dim=8, mlp_size=64)


@dataclass(frozen=True, slots=True)
class PooledWorker:
    """An engine whose ranks' KV lies in `pools`, one uint8 tensor for each rank, as `layout` says."""

    engine: ReferenceEngine
    pools: list[torch.Tensor]
    layout: WorkerLayout


def pooled_worker(
    config: ModelConfig,
    *,
    num_blocks: int,
    block_tokens: int = 16,
    tp_degree: int = 1,
    order: Sequence[str] = NHD,
    fill: int = 0,
) -> PooledWorker:
    """A worker on fresh pools of which every byte is `fill`."""
    model = DenseModel(
        model="reference",
        layer_count=config.num_layers,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        tokens_per_block=block_tokens,
        element_type=ElementType(config.kv_dtype),
    )
    layout = dense_layout(model, num_blocks, tp_degree, order)
    size = end_bytes(layout.groups[0], layout.ranks[0].placements[0])
    pools = [torch.full((size,), fill, dtype=torch.uint8) for _ in layout.ranks]
    views = [view_in_pool(pool, layout, rank, config) for rank, pool in enumerate(pools)]
    return PooledWorker(ReferenceEngine(config, [PagedKV(view) for view in views]), pools, layout)


def view_in_pool(pool: torch.Tensor, layout: WorkerLayout, rank: int, config: ModelConfig) -> torch.Tensor:
    """The rank's KV in `pool` indexed [layer, block, kv, token, head, dim], without a copy."""
    group, placement = layout.groups[0], layout.ranks[rank].placements[0]
    size, strides = group.element_type.size_bytes, placement.strides
    shape = (
        len(placement.layers),
        placement.block_count,
        group.kv_factor,
        group.tokens_per_block,
        len(placement.heads),
        group.head_dim,
    )
    in_bytes = (strides.layer, strides.block, strides.kv, strides.token, strides.head, strides.dim)
    elements = pool.view(kv_dtype(config))
    return elements.as_strided(shape, [stride // size for stride in in_bytes], placement.base_bytes // size)


def text_tokens(count: int) -> list[int]:
    """`count` byte tokens that repeat like text does, and are no period of any block size."""
    words = b"the prefill worker computes keys and values, the decode worker reads them; "
    return [(words[i % len(words)] + i // 97) % 256 for i in range(count)]


def fingerprint(threads: int) -> str:
    """Digest of a layer's weights, and some tokens, computed with that many threads."""
    torch.set_num_threads(threads)
    shard = layer_shard(TINY, 2, 1, 2, torch.device("cpu"))
    digest = hashlib.sha256(shard.qkv.numpy().tobytes() + shard.down.numpy().tobytes()).hexdigest()
    return f"{digest} {generate_alone(SMALL, text_tokens(50), 8)}"
