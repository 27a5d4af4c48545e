"""Dense layouts: the usual case where KV fills one array without gaps, in some order of its axes."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvferry.core.errors import LayoutInvalid
from kvferry.core.layouts import (
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


def dense_layout(
    model: DenseModel, block_count: int, tensor_parallel: int = 1, order: Sequence[str] = NHD, group: str = "full"
) -> WorkerLayout:
    """Lay ``model`` out over ``tensor_parallel`` ranks, heads split evenly, ``block_count`` blocks on each.

    ``order`` lists the axes from outermost to innermost in memory.

    Raises:
        LayoutInvalid: the heads do not divide, or a count is out of bounds; names the field.
    """
    if sorted(order) != sorted(AXES):
        raise LayoutInvalid.of_field("order", tuple(order), f"must list each of {AXES} once")
    if tensor_parallel < 1 or model.kv_heads % tensor_parallel:
        raise LayoutInvalid.of_field("tensor_parallel", tensor_parallel, f"must divide {model.kv_heads} KV heads")
    layers = tuple(range(model.layer_count))
    layer_group = LayerGroup(
        name=group,
        element_type=model.element_type,
        kv_factor=model.kv_factor,
        total_kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        tokens_per_block=model.tokens_per_block,
        layers=layers,
    )
    heads = model.kv_heads // tensor_parallel
    strides = _dense_strides(
        (block_count, model.layer_count, model.kv_factor, heads, model.tokens_per_block, model.head_dim),
        order,
        model.element_type.size_bytes,
    )
    ranks = tuple(
        RankLayout(
            rank=rank,
            placements=(
                GroupPlacement(
                    group=group,
                    layers=layers,
                    heads=tuple(range(rank * heads, (rank + 1) * heads)),
                    block_count=block_count,
                    base_bytes=0,
                    strides=strides,
                ),
            ),
        )
        for rank in range(tensor_parallel)
    )
    layout = WorkerLayout(model=model.model, groups=(layer_group,), ranks=ranks)
    validate_layout(layout)
    return layout


def _dense_strides(shape: tuple[int, ...], order: Sequence[str], element_bytes: int) -> Strides:
    counts = dict(zip(AXES, shape, strict=True))
    strides: dict[str, int] = {}
    step = element_bytes
    for axis in reversed(order):
        strides[axis] = step
        step *= max(counts[axis], 1)
    return Strides(**strides)
