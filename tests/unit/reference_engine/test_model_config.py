"""What a model can be built from: config fields, weights and views of KV memory."""

import multiprocessing

import pytest
import torch

from kvferry.core.errors import InvalidArgument
from kvferry.reference_engine.config import TINY, ModelConfig
from kvferry.reference_engine.generate import ReferenceEngine
from kvferry.reference_engine.paged_kv import PagedKV
from kvferry.reference_engine.parallelism import Parallelism, rank_shares
from kvferry.reference_engine.weights import grouped_shard, mlp_shard, replicated_weights
from tests.unit.reference_engine.pools import SMALL, fingerprint

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 0),
        ("hidden_size", -1),
        ("num_heads", 6),
        ("num_kv_heads", 3),
        ("num_kv_heads", True),
        ("head_dim", 31),
        ("mlp_size", 1.5),
        ("vocab_size", "256"),
        ("max_tokens", 0),
        ("rope_theta", 0.0),
        ("rope_theta", float("nan")),
        ("norm_epsilon", float("inf")),
        ("norm_epsilon", "small"),
        ("weight_seed", -1),
        ("compute_dtype", "bfloat16"),
        ("kv_dtype", "float64"),
        ("mla_rope_dim", 16),
        ("mla_latent_dim", -1),
        ("window_tokens", 1.5),
    ],
)
def test_config_refuses_a_bad_field_by_name_and_value(field: str, value: object) -> None:
    """A config field that cannot work is refused with an error that names a field at fault and its value."""
    with pytest.raises(InvalidArgument) as refused:
        ModelConfig(**{field: value})  # type: ignore[arg-type]
    at_fault = "num_heads" if value == 3 else field
    assert at_fault == refused.value.metadata["field"]
    assert at_fault in str(refused.value)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("num_kv_heads", {"num_kv_heads": 4, "mla_rope_dim": 8}),
        ("mla_rope_dim", {"num_kv_heads": 1}),
        ("mla_rope_dim", {"num_kv_heads": 1, "mla_rope_dim": 7}),
    ],
)
def test_mla_needs_one_head_and_pairs_to_turn(field: str, values: dict[str, int]) -> None:
    """A latent without a rotary part, or beside several KV heads, is refused by name."""
    with pytest.raises(InvalidArgument) as refused:
        ModelConfig(mla_latent_dim=16, **values)  # type: ignore[arg-type]
    assert field == refused.value.metadata["field"]


@pytest.mark.parametrize(
    ("field", "parallelism"),
    [
        *(("tensor_parallel", Parallelism(tensor=degree)) for degree in (0, 3, 16, True)),
        *(("pipeline_parallel", Parallelism(pipeline=degree)) for degree in (0, 5, True)),
    ],
)
def test_degrees_must_fit_the_model(field: str, parallelism: Parallelism) -> None:
    """A degree that leaves ranks with unequal heads, or a stage without a layer, is refused by name."""
    with pytest.raises(InvalidArgument) as refused:
        ReferenceEngine.with_private_kv(TINY, num_blocks=1, parallelism=parallelism)
    assert field == refused.value.metadata["field"]


@pytest.mark.parametrize("kv_heads", [3, 6])
def test_kv_heads_that_neither_divide_nor_are_divided_are_refused(kv_heads: int) -> None:
    """Four ranks cannot hold three or six KV heads alike."""
    config = ModelConfig(num_heads=24, num_kv_heads=kv_heads)
    with pytest.raises(InvalidArgument, match=f"num_kv_heads={kv_heads}"):
        rank_shares(config, Parallelism(tensor=4))


def test_ranks_are_numbered_by_stage_and_uneven_stages_begin_with_more_layers() -> None:
    """Five layers over three stages of two ranks are 2, 2 and 1, and the heads of each stage lie on its two ranks."""
    shares = rank_shares(ModelConfig(num_layers=5), Parallelism(tensor=2, pipeline=3))
    assert [
        ([0, 1], [0, 1]),
        ([0, 1], [2, 3]),
        ([2, 3], [0, 1]),
        ([2, 3], [2, 3]),
        ([4], [0, 1]),
        ([4], [2, 3]),
    ] == [(list(share.layers), list(share.kv_heads)) for share in shares]


def test_more_ranks_than_kv_heads_share_them_in_order() -> None:
    """Eight ranks hold four KV heads twice each, neighbours the same."""
    shares = rank_shares(TINY, Parallelism(tensor=8))
    assert [[0], [0], [1], [1], [2], [2], [3], [3]] == [list(share.kv_heads) for share in shares]


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_shards_together_are_the_whole(degree: int) -> None:
    """The ranks' partial matrices multiply and add up to what one rank's whole matrices give."""
    (all_of_it,) = rank_shares(SMALL, Parallelism())
    shares = rank_shares(SMALL, Parallelism(tensor=degree))
    whole, whole_mlp = grouped_shard(SMALL, 1, all_of_it, CPU), mlp_shard(SMALL, 1, all_of_it, CPU)
    shards = [grouped_shard(SMALL, 1, share, CPU) for share in shares]
    mlps = [mlp_shard(SMALL, 1, share, CPU) for share in shares]
    assert torch.equal(whole.attention_out, torch.cat([shard.attention_out for shard in shards], dim=1))
    assert torch.equal(whole_mlp.down, torch.cat([shard.down for shard in mlps], dim=1))
    gate_up = [shard.gate_up.chunk(2) for shard in mlps]
    assert torch.equal(whole_mlp.gate_up, torch.cat([gate for gate, _ in gate_up] + [up for _, up in gate_up]))
    q, kv = SMALL.num_heads * SMALL.head_dim // degree, SMALL.num_kv_heads * SMALL.head_dim // degree
    parts = zip(*(torch.split(shard.qkv, [q, kv, kv]) for shard in shards), strict=True)
    assert torch.equal(whole.qkv, torch.cat([row for part in parts for row in part]))


def test_another_process_draws_the_same_weights() -> None:
    """A process with other threads and another hash seed has the same weights and the same tokens."""
    with multiprocessing.get_context("spawn").Pool(1) as other:
        there = other.apply_async(fingerprint, (1,)).get(timeout=60)
    assert fingerprint(2) == there


def test_another_seed_draws_other_weights() -> None:
    """The seed decides the weights."""
    other = ModelConfig(weight_seed=1)
    assert not torch.equal(replicated_weights(TINY, CPU).embedding, replicated_weights(other, CPU).embedding)


@pytest.mark.parametrize(
    ("view", "field"),
    [
        (torch.zeros(2, 3, 2, 16, 4, dtype=torch.bfloat16), "view.shape"),
        (torch.zeros(2, 3, 3, 16, 4, 8, dtype=torch.bfloat16), "view.shape[kv]"),
        (torch.zeros(2, 0, 2, 16, 4, 8, dtype=torch.bfloat16), "view.shape[block]"),
        (torch.zeros(2, 3, 2, 16, 4, 8, dtype=torch.uint8), "view.dtype"),
        (
            torch.zeros(1, 3, 2, 16, 4, 8, dtype=torch.bfloat16).expand(2, -1, -1, -1, -1, -1),
            "view.stride[layer]",
        ),
    ],
)
def test_a_view_that_is_no_kv_is_refused(view: torch.Tensor, field: str) -> None:
    """A view of wrong dimensions, type or overlap is refused with an error that names what is wrong."""
    with pytest.raises(InvalidArgument) as refused:
        PagedKV(view)
    assert field == refused.value.metadata["field"]


@pytest.mark.parametrize(
    ("shapes", "dtype", "field"),
    [
        ([], torch.bfloat16, "kv"),
        ([(3, 5, 2, 16, 4, 8)], torch.bfloat16, "kv[0][full].num_layers"),
        ([(2, 5, 1, 16, 4, 8)], torch.bfloat16, "kv[0][full].kv_factor"),
        ([(2, 5, 2, 16, 2, 8)], torch.bfloat16, "kv[0][full].num_kv_heads"),
        ([(2, 5, 2, 16, 4, 4)], torch.bfloat16, "kv[0][full].kv_dim"),
        ([(2, 5, 2, 16, 4, 8)], torch.float16, "kv[0][full].dtype"),
        ([(2, 5, 2, 16, 2, 8), (2, 6, 2, 16, 2, 8)], torch.bfloat16, "kv[1][full].num_blocks"),
        ([(2, 5, 2, 16, 2, 8), (2, 5, 2, 8, 2, 8)], torch.bfloat16, "kv[1][full].block_tokens"),
    ],
)
def test_kv_that_does_not_fit_the_model_is_refused(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, field: str
) -> None:
    """KV of another model, or unlike its neighbours, is refused with an error that names the difference."""
    kv = [{"full": PagedKV(torch.zeros(shape, dtype=dtype))} for shape in shapes]
    with pytest.raises(InvalidArgument) as refused:
        ReferenceEngine(SMALL, kv, Parallelism(tensor=max(len(kv), 1)))
    assert field == refused.value.metadata["field"]


def test_kv_of_another_layer_group_is_refused() -> None:
    """A model with windows wants the KV of both groups."""
    config = ModelConfig(num_layers=2, window_tokens=10)
    kv = {"full": PagedKV(torch.zeros(1, 5, 2, 16, 4, 32, dtype=torch.bfloat16))}
    with pytest.raises(InvalidArgument, match=r"kv\[0\]=.*'full', 'window'"):
        ReferenceEngine(config, [kv])
