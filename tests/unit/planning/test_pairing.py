"""The pairing verdict names every difference that matters, and only those."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kvferry.core.dense import CROSS_LAYER, HND, NHD, DenseModel, dense_layout
from kvferry.core.errors import LayoutMismatch
from kvferry.core.layouts import ElementType, Strides, WorkerLayout, validate_layout
from kvferry.core.pairing import mismatches
from kvferry.core.planning.planner import PairPlan
from tests.unit.planning.random_layouts import random_case

MODEL = DenseModel(
    model="m", layer_count=3, kv_heads=4, head_dim=8, tokens_per_block=16, element_type=ElementType.BFLOAT16
)


def layout(model: DenseModel = MODEL, **how: Any) -> WorkerLayout:
    """A dense layout of a few blocks."""
    return dense_layout(model, 5, **how)


def with_group(source: WorkerLayout, **changes: Any) -> WorkerLayout:
    """``source`` with its layer group changed."""
    return dataclasses.replace(source, groups=(dataclasses.replace(source.groups[0], **changes),))


def without_ranks(source: WorkerLayout, keep: int) -> WorkerLayout:
    """``source`` with its first ranks only."""
    return dataclasses.replace(source, ranks=source.ranks[:keep])


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4, 8])
@pytest.mark.parametrize("pipeline", [(), (1, 2), (1, 1, 1)])
@pytest.mark.parametrize("order", [NHD, HND, CROSS_LAYER])
def test_any_layout_of_the_model_pairs(tensor_parallel: int, pipeline: tuple[int, ...], order: tuple[str, ...]) -> None:
    """How many ranks share the KV, its order in memory, and block and pool sizes need not agree."""
    other = dataclasses.replace(MODEL, tokens_per_block=32)
    source = dense_layout(other, 9, tensor_parallel, order, pipeline=pipeline, data_parallel=2)
    assert () == mismatches(source, layout(tensor_parallel=2, pipeline=(2, 1)))
    assert () == mismatches(layout(), source)


def test_every_difference_is_named() -> None:
    """The verdict lists all fields that differ, with both values."""
    other = dataclasses.replace(
        MODEL, model="n", head_dim=16, kv_factor=1, kv_heads=8, element_type=ElementType.FLOAT16
    )
    found = mismatches(layout(), layout(other))
    values = {m.field: (m.source, m.destination) for m in found}
    expected = {
        "model": ("m", "n"),
        "groups[full].element_type": ("bfloat16", "float16"),
        "groups[full].kv_factor": ("2", "1"),
        "groups[full].total_kv_heads": ("4", "8"),
        "groups[full].head_dim": ("8", "16"),
    }
    assert expected == values


def test_other_layers_are_named() -> None:
    """Groups must have the same layers of the model."""
    found = mismatches(layout(), layout(dataclasses.replace(MODEL, layer_count=2)))
    assert [("groups[full].layers", "(0, 1, 2)", "(0, 1)")] == [(m.field, m.source, m.destination) for m in found]


def test_other_groups_are_named() -> None:
    """Both sides must have the same groups, and state is no group of tokens."""
    assert ["groups"] == [m.field for m in mismatches(layout(), layout(group="other"))]
    state = with_group(layout(dataclasses.replace(MODEL, tokens_per_block=1)), per_sequence=True)
    assert ["groups[full].per_sequence"] == [m.field for m in mismatches(layout(), state)]


@pytest.mark.parametrize(
    ("kept", "needed", "pairs"), [(0, 0, True), (0, 4, True), (8, 4, True), (4, 4, True), (4, 8, False), (4, 0, False)]
)
def test_a_source_keeps_what_the_destination_needs(kept: int, needed: int, pairs: bool) -> None:
    """A source window may be longer than the destination's, or none at all, but not shorter."""
    found = mismatches(with_group(layout(), window_tokens=kept), with_group(layout(), window_tokens=needed))
    assert ([] if pairs else ["groups[full].window_tokens"]) == [m.field for m in found]


@pytest.mark.parametrize("flipped", [False, True])
def test_what_no_rank_holds_is_named(flipped: bool) -> None:
    """Each side must hold every layer and head; what is missing is said."""
    part = without_ranks(layout(tensor_parallel=2, pipeline=(2, 1)), 3)
    validate_layout(part)
    pair = (layout(), part) if flipped else (part, layout())
    found = mismatches(*pair)
    assert ["groups[full].ranks"] == [m.field for m in found]
    assert "no rank with layer 2, head 2, 3" == (found[0].destination if flipped else found[0].source)


def test_each_data_parallel_rank_is_looked_at() -> None:
    """That another data-parallel rank holds it does not help: it holds other requests."""
    part = without_ranks(layout(tensor_parallel=2, data_parallel=2), 3)
    assert ["groups[full].ranks[data_parallel_rank=1]"] == [m.field for m in mismatches(part, layout())]


def test_scattered_beyond_measure_is_refused() -> None:
    """A pair for which one block would take millions of copies is refused when it is paired."""
    model = DenseModel("m", 64, 64, 2048, 4, ElementType.INT8)
    good = dense_layout(model, 1, order=HND)
    bad = dense_layout(model, 1, order=("block", "layer", "kv", "head", "dim", "token"))
    assert () == mismatches(good, good)
    assert ["groups[full].strides"] == [m.field for m in mismatches(good, bad)]
    assert isinstance(good.ranks[0].placements[0].strides, Strides)


@given(st.integers(0, 1 << 32), st.data())
def test_the_verdict_and_the_planner_agree(seed: int, data: st.DataObject) -> None:
    """A pair is planned for every rank or refused for every rank, just as the verdict says."""
    one, other = random_case(seed), random_case(data.draw(st.integers(seed, seed + 50)))
    found = mismatches(one.source, other.destination)
    for rank in range(len(other.destination.ranks)):
        if not found:
            PairPlan(one.source, other.destination, rank)
            continue
        with pytest.raises(LayoutMismatch) as caught:
            PairPlan(one.source, other.destination, rank)
        assert found[0].field == caught.value.metadata["field"]


def test_replicas_share_the_load() -> None:
    """Of equal source ranks each serves about as many destination ranks, and one reader reads from one of them."""
    mla = dataclasses.replace(MODEL, kv_heads=1, kv_factor=1)
    for sources, readers in ((4, 8), (8, 4), (8, 8), (3, 7)):
        pair = [
            PairPlan(layout(mla, tensor_parallel=sources), layout(mla, tensor_parallel=readers), rank)
            for rank in range(readers)
        ]
        asked = [plan.source_ranks for plan in pair]
        assert all(len(ranks) == 1 for ranks in asked)
        served = np.bincount([ranks[0] for ranks in asked], minlength=sources)
        assert -(-readers // sources) == int(served.max())
