"""The pairing verdict names every difference, and only differences."""

import dataclasses

from kvferry.core.dense import CROSS_LAYER, HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry_control.pairing import mismatches

MODEL = DenseModel(
    model="m", layer_count=3, kv_heads=4, head_dim=8, tokens_per_block=16, element_type=ElementType.BFLOAT16
)


def test_equal_layouts_pair() -> None:
    """Pools of different sizes can be paired."""
    for order in (NHD, HND, CROSS_LAYER):
        source = dense_layout(MODEL, block_count=5, tensor_parallel=2, order=order)
        destination = dense_layout(MODEL, block_count=900, tensor_parallel=2, order=order)
        assert () == mismatches(source, destination)


def test_every_difference_is_named() -> None:
    """The verdict lists all fields that differ, with both values."""
    other = dataclasses.replace(MODEL, model="n", head_dim=16, tokens_per_block=32, element_type=ElementType.FLOAT16)
    found = mismatches(
        dense_layout(MODEL, block_count=5, tensor_parallel=2), dense_layout(other, block_count=5, tensor_parallel=2)
    )
    values = {m.field: (m.source, m.destination) for m in found}
    assert ("m", "n") == values["model"]
    assert ("8", "16") == values["groups[full].head_dim"]
    assert ("16", "32") == values["groups[full].tokens_per_block"]
    assert ("bfloat16", "float16") == values["groups[full].element_type"]


def test_another_tensor_parallel_degree_is_refused() -> None:
    """Two ranks against four is a mismatch of ranks and of heads."""
    found = mismatches(
        dense_layout(MODEL, block_count=5, tensor_parallel=2), dense_layout(MODEL, block_count=5, tensor_parallel=4)
    )
    assert {"ranks", "ranks[0].placements[full].heads", "ranks[1].placements[full].heads"} <= {m.field for m in found}


def test_nhd_against_hnd_is_refused() -> None:
    """Another order inside a block is a mismatch of strides."""
    found = mismatches(
        dense_layout(MODEL, block_count=5, order=NHD), dense_layout(MODEL, block_count=5, order=HND)
    )
    assert ["ranks[0].placements[full].strides"] == [m.field for m in found]
