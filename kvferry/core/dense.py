"""Dense layouts: the usual case where KV fills one array without gaps, in some order of its axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from kvferry.core.errors import LayoutInvalid
from kvferry.core.layouts import (
    RANKS_MAX,
    ElementType,
    GroupPlacement,
    LayerGroup,
    RankLayout,
    Strides,
    WorkerLayout,
    validate_layout,
)

AXES = ("block", "layer", "kv", "head", "token", "dim")

NHD = ("layer", "kv", "block", "token", "head", "dim")
"""One region per layer, K and V apart, tokens outside heads."""
HND = ("layer", "kv", "block", "head", "token", "dim")
"""One region per layer, K and V apart, heads outside tokens."""
CROSS_LAYER = ("block", "layer", "kv", "token", "head", "dim")
"""All layers of a block together: a block is one run of bytes."""


@dataclass(frozen=True, slots=True)
class DenseModel:
    """A model with one layer group whose KV every rank holds densely."""

    model: str
    layer_count: int
    kv_heads: int
    head_dim: int
    tokens_per_block: int
    element_type: ElementType
    kv_factor: int = 2
    window_tokens: int = 0


def dense_layout(
    model: DenseModel,
    block_count: int,
    tensor_parallel: int = 1,
    order: Sequence[str] = NHD,
    group: str = "full",
    *,
    pipeline: Sequence[int] = (),
    data_parallel: int = 1,
) -> WorkerLayout:
    """Lay ``model`` out over ranks with ``block_count`` blocks on each.

    ``order`` lists the axes from outermost to innermost in memory. Each pipeline stage holds so many layers, in order;
    by default there is one stage. Heads are split evenly over the ``tensor_parallel`` ranks of a stage; of more ranks
    than heads, neighbours hold the same head. Each data-parallel rank holds whole requests of its own. Ranks are
    numbered by data-parallel rank, then by stage.

    Raises:
        LayoutInvalid: the heads or layers do not divide, or a count is out of bounds; names the field.
    """
    if sorted(order) != sorted(AXES):
        raise LayoutInvalid.of_field("order", tuple(order), f"must list each of {AXES} once")
    head_parts = _split_heads(model.kv_heads, tensor_parallel)
    layer_parts = _split_layers(model.layer_count, tuple(pipeline) or (model.layer_count,))
    if not 1 <= data_parallel * len(layer_parts) * tensor_parallel <= RANKS_MAX:
        raise LayoutInvalid.of_field("data_parallel", data_parallel, f"must make 1 to {RANKS_MAX} ranks")
    layer_group = LayerGroup(
        name=group,
        element_type=model.element_type,
        kv_factor=model.kv_factor,
        total_kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        tokens_per_block=model.tokens_per_block,
        layers=tuple(range(model.layer_count)),
        window_tokens=model.window_tokens,
    )
    held = [(shard, layers, heads) for shard in range(data_parallel) for layers in layer_parts for heads in head_parts]
    ranks = tuple(
        RankLayout(rank, (_dense_placement(layer_group, layers, heads, block_count, order),), shard)
        for rank, (shard, layers, heads) in enumerate(held)
    )
    layout = WorkerLayout(model=model.model, groups=(layer_group,), ranks=ranks)
    validate_layout(layout)
    return layout


def _split_heads(kv_heads: int, tensor_parallel: int) -> list[tuple[int, ...]]:
    if not 1 <= tensor_parallel <= RANKS_MAX:
        raise LayoutInvalid.of_field("tensor_parallel", tensor_parallel, f"must be 1 to {RANKS_MAX}")
    if kv_heads < 1 or (kv_heads % tensor_parallel and tensor_parallel % kv_heads):
        why = f"must divide {kv_heads} KV heads, or be a multiple of them"
        raise LayoutInvalid.of_field("tensor_parallel", tensor_parallel, why)
    each = max(kv_heads // tensor_parallel, 1)
    copies = max(tensor_parallel // kv_heads, 1)
    return [tuple(range(rank // copies * each, (rank // copies + 1) * each)) for rank in range(tensor_parallel)]


def _split_layers(layer_count: int, stages: tuple[int, ...]) -> list[tuple[int, ...]]:
    if min(stages) < 1 or sum(stages) != layer_count:
        raise LayoutInvalid.of_field("pipeline", stages, f"must be stages of 1 or more layers, {layer_count} in all")
    ends = list(accumulate(stages))
    return [tuple(range(end - count, end)) for end, count in zip(ends, stages, strict=True)]


def _dense_placement(
    group: LayerGroup, layers: tuple[int, ...], heads: tuple[int, ...], block_count: int, order: Sequence[str]
) -> GroupPlacement:
    shape = (block_count, len(layers), group.kv_factor, len(heads), group.tokens_per_block, group.head_dim)
    return GroupPlacement(
        group=group.name,
        layers=layers,
        heads=heads,
        block_count=block_count,
        base_bytes=0,
        strides=_dense_strides(shape, order, group.element_type.size_bytes),
    )


def _dense_strides(shape: tuple[int, ...], order: Sequence[str], element_bytes: int) -> Strides:
    counts = dict(zip(AXES, shape, strict=True))
    strides: dict[str, int] = {}
    step = element_bytes
    for axis in reversed(order):
        strides[axis] = step
        step *= max(counts[axis], 1)
    return Strides(**strides)
