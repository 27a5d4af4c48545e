"""What an engine declares about its KV."""

from typing import Any

import pytest

from kvferry.core.dense import CROSS_LAYER, HND, NHD
from kvferry.core.layouts import Strides, end_bytes, validate_layout
from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.layout import engine_layout, model_name, pool_bytes_needed
from kvferry.reference_engine.parallelism import Parallelism
from kvferry.reference_engine.variants import model_variant

MODEL = ModelConfig(num_layers=5)


def test_uneven_stages_and_heads_appear_as_they_are_held() -> None:
    """Of five layers over two stages the first holds three; each rank of a stage holds half of the heads."""
    layout = engine_layout(MODEL, Parallelism(2, 2), 10, 16, NHD)
    assert [
        ((0, 1, 2), (0, 1)),
        ((0, 1, 2), (2, 3)),
        ((3, 4), (0, 1)),
        ((3, 4), (2, 3)),
    ] == [(p.layers, p.heads) for rank in layout.ranks for p in rank.placements]


def test_heads_are_repeated_where_there_are_more_ranks() -> None:
    """Eight ranks declare four KV heads twice each, of four in all."""
    layout = engine_layout(MODEL, Parallelism(8), 10, 16, NHD)
    assert [(head // 2,) for head in range(8)] == [rank.placements[0].heads for rank in layout.ranks]
    assert 4 == layout.groups[0].total_kv_heads


def test_mla_is_one_head_of_kv_factor_one_on_every_rank() -> None:
    """The latent and its rotary part are one head that every rank holds."""
    layout = engine_layout(model_variant(mla=True), Parallelism(4), 10, 16, HND)
    (group,) = layout.groups
    assert (1, 1, 64) == (group.kv_factor, group.total_kv_heads, group.head_dim)
    assert [(0,)] * 4 == [rank.placements[0].heads for rank in layout.ranks]


def test_windowed_layers_are_a_group_of_their_own() -> None:
    """Every second layer is in the group that says its window; both groups share a pool."""
    layout = engine_layout(model_variant(layers=5, window=100), Parallelism(), 10, 16, NHD)
    assert [("full", (0, 2, 4), 0), ("window", (1, 3), 100)] == [
        (group.name, group.layers, group.window_tokens) for group in layout.groups
    ]
    full, window = layout.ranks[0].placements
    assert end_bytes(layout.groups[0], full) <= window.base_bytes
    assert end_bytes(layout.groups[1], window) == pool_bytes_needed(layout)


def test_a_stage_without_windowed_layers_holds_no_such_group() -> None:
    """Three layers over three stages: the second stage holds windowed layers alone, the others none."""
    layout = engine_layout(model_variant(layers=3, window=100), Parallelism(1, 3), 10, 16, NHD)
    assert [["full"], ["window"], ["full"]] == [[p.group for p in rank.placements] for rank in layout.ranks]


@pytest.mark.parametrize(
    ("order", "strides"),
    [
        # Of 10 blocks of 16 tokens, 2 heads of 32 numbers, in bytes: (block, layer, kv, head, token, dim).
        (NHD, Strides(2048, 40960, 20480, 64, 128, 2)),
        (HND, Strides(2048, 40960, 20480, 1024, 64, 2)),
        (CROSS_LAYER, Strides(20480, 4096, 2048, 64, 128, 2)),
    ],
)
def test_memory_orders_are_strides(order: tuple[str, ...], strides: Strides) -> None:
    """The order in memory shows in the strides of what the rank holds, and in nothing else."""
    layout = engine_layout(MODEL, Parallelism(2), 10, 16, order)
    assert strides == layout.ranks[1].placements[0].strides


@pytest.mark.parametrize("order", [NHD, HND, CROSS_LAYER], ids=["nhd", "hnd", "cross-layer"])
@pytest.mark.parametrize("variant", [{}, {"mla": True}, {"window": 9}, {"mla": True, "window": 9}, {"kv_heads": 1}])
def test_what_is_declared_fits_the_pool(order: tuple[str, ...], variant: dict[str, object]) -> None:
    """Every rank's KV lies within the pool that is asked for, without overlap."""
    model = model_variant(layers=5, **variant)  # type: ignore[arg-type]
    for tensor, pipeline in ((1, 1), (2, 3), (8, 2)):
        layout = engine_layout(model, Parallelism(tensor, pipeline), 7, 48, order)
        validate_layout(layout, {rank.rank: pool_bytes_needed(layout) for rank in layout.ranks})


def test_the_model_name_tells_models_apart_and_not_shapes() -> None:
    """Equal models have one name whatever the shape of their workers; MLA, windows, heads and seeds change it."""
    variants: tuple[dict[str, Any], ...] = (
        {},
        {"mla": True},
        {"window": 9},
        {"kv_heads": 8},
        {"weight_seed": 1},
        {"kv_dtype": "float32"},
    )
    assert len(variants) == len({model_name(model_variant(**v)) for v in variants})
    one, other = (
        engine_layout(MODEL, Parallelism(degree), blocks, tokens, NHD).model
        for degree, blocks, tokens in ((1, 10, 16), (4, 99, 64))
    )
    assert one == other
