"""The reference decoder's KV as a worker layout."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.layouts import (
    ElementType,
    GroupPlacement,
    LayerGroup,
    RankLayout,
    WorkerLayout,
    end_bytes,
    validate_layout,
)
from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.parallelism import Parallelism, RankShare, rank_shares

_FINGERPRINT_CHARS = 16
_GROUP_ALIGNMENT_BYTES = 256
"""Of a group's first byte in the pool, for the sake of accelerators."""


def model_name(config: ModelConfig) -> str:
    """A name that two engines share exactly when their models, weights included, are equal."""
    described = json.dumps(asdict(config), sort_keys=True)
    return f"reference-{hashlib.sha256(described.encode()).hexdigest()[:_FINGERPRINT_CHARS]}"


def engine_layout(
    config: ModelConfig, parallelism: Parallelism, block_count: int, block_tokens: int, order: Sequence[str]
) -> WorkerLayout:
    """What the engine declares: in each pool one layer group after the other, ``block_count`` blocks of each.

    ``order`` lists the axes from outermost to innermost in memory.

    Raises:
        InvalidArgument: the degrees do not fit the model.
        LayoutInvalid: a count is out of bounds.
    """
    groups = {
        name: LayerGroup(
            name=name,
            element_type=ElementType(config.kv_dtype),
            kv_factor=config.kv_factor,
            total_kv_heads=config.num_kv_heads,
            head_dim=config.kv_dim,
            tokens_per_block=block_tokens,
            layers=layers,
            window_tokens=config.window_of(name),
        )
        for name, layers in config.layer_groups.items()
    }
    ranks = []
    for share in rank_shares(config, parallelism):
        placements: list[GroupPlacement] = []
        free = 0
        for name, layers in share.layer_groups(config).items():
            placed = _placement(groups[name], layers, share, block_count, order)
            placements.append(replace(placed, base_bytes=free))
            free += -(-end_bytes(groups[name], placed) // _GROUP_ALIGNMENT_BYTES) * _GROUP_ALIGNMENT_BYTES
        ranks.append(RankLayout(share.rank, tuple(placements)))
    layout = WorkerLayout(model=model_name(config), groups=tuple(groups.values()), ranks=tuple(ranks))
    validate_layout(layout)
    return layout


def pool_bytes_needed(layout: WorkerLayout) -> int:
    """Bytes of a pool that any rank's part of ``layout`` fits in."""
    return max(end_bytes(layout.group(p.group), p) for rank in layout.ranks for p in rank.placements)


def _placement(
    group: LayerGroup, layers: tuple[int, ...], share: RankShare, block_count: int, order: Sequence[str]
) -> GroupPlacement:
    """A rank's part of a group, as it lies at the beginning of a pool."""
    held = DenseModel(
        model=group.name,
        layer_count=len(layers),
        kv_heads=len(share.kv_heads),
        head_dim=group.head_dim,
        tokens_per_block=group.tokens_per_block,
        element_type=group.element_type,
        kv_factor=group.kv_factor,
    )
    (placed,) = dense_layout(held, block_count, order=order, group=group.name).ranks[0].placements
    return replace(placed, layers=layers, heads=tuple(share.kv_heads))
