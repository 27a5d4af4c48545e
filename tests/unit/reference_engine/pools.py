"""Flat byte pools, and a rank's KV in them as a layout describes it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvferry.core.dense import NHD
from kvferry.core.layouts import GroupPlacement, LayerGroup, WorkerLayout
from kvferry.reference_engine.config import TINY, ModelConfig
from kvferry.reference_engine.generate import SINGLE, ReferenceEngine, generate_alone
from kvferry.reference_engine.layout import engine_layout, pool_bytes_needed
from kvferry.reference_engine.paged_kv import PagedKV, kv_dtype
from kvferry.reference_engine.parallelism import Parallelism, rank_shares
from kvferry.reference_engine.weights import grouped_shard, mlp_shard

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
    parallelism: Parallelism = SINGLE,
    order: Sequence[str] = NHD,
    fill: int = 0,
) -> PooledWorker:
    """A worker on fresh pools of which every byte is `fill`."""
    layout = engine_layout(config, parallelism, num_blocks, block_tokens, order)
    pools = [torch.full((pool_bytes_needed(layout),), fill, dtype=torch.uint8) for _ in layout.ranks]
    kv = [
        {p.group: PagedKV(_view(pool, layout.group(p.group), p, config)) for p in rank.placements}
        for pool, rank in zip(pools, layout.ranks, strict=True)
    ]
    return PooledWorker(ReferenceEngine(config, kv, parallelism), pools, layout)


def view_in_pool(pool: torch.Tensor, layout: WorkerLayout, rank: int, config: ModelConfig) -> torch.Tensor:
    """The rank's KV of its only group in `pool` indexed [layer, block, kv, token, head, dim], without a copy."""
    (placement,) = layout.ranks[rank].placements
    return _view(pool, layout.group(placement.group), placement, config)


def _view(pool: torch.Tensor, group: LayerGroup, placement: GroupPlacement, config: ModelConfig) -> torch.Tensor:
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
    elements = pool[: pool.numel() // size * size].view(kv_dtype(config))
    return elements.as_strided(shape, [stride // size for stride in in_bytes], placement.base_bytes // size)


def text_tokens(count: int) -> list[int]:
    """`count` byte tokens that repeat like text does, and are no period of any block size."""
    words = b"the prefill worker computes keys and values, the decode worker reads them; "
    return [(words[i % len(words)] + i // 97) % 256 for i in range(count)]


def fingerprint(threads: int) -> str:
    """Digest of a layer's weights, and some tokens, computed with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        share = rank_shares(TINY, Parallelism(tensor=2))[1]
        cpu = torch.device("cpu")
        weights = grouped_shard(TINY, 2, share, cpu).qkv, mlp_shard(TINY, 2, share, cpu).down
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights)).hexdigest()
        return f"{digest} {generate_alone(SMALL, text_tokens(50), 8)}"
    finally:
        torch.set_num_threads(before)
