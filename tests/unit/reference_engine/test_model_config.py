"""What a model can be built from: config fields, weights and views of KV memory."""

import multiprocessing

import pytest
import torch

from kvferry.core.errors import InvalidArgument
from kvferry.reference_engine.config import TINY, ModelConfig
from kvferry.reference_engine.generate import ReferenceEngine
from kvferry.reference_engine.paged_kv import PagedKV
from kvferry.reference_engine.weights import layer_shard, replicated_weights
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
    ],
)
def test_config_refuses_a_bad_field_by_name_and_value(field: str, value: object) -> None:
    """A config field that cannot work is refused with an error that names a field at fault and its value."""
    with pytest.raises(InvalidArgument) as refused:
        ModelConfig(**{field: value})  # type: ignore[arg-type]
    at_fault = "num_heads" if value == 3 else field
    assert at_fault == refused.value.metadata["field"]
    assert at_fault in str(refused.value)


@pytest.mark.parametrize("degree", [0, 3, 8, True])
def test_tensor_parallel_degree_must_divide_the_kv_heads(degree: int) -> None:
    """A degree that leaves a rank without equal KV heads is refused."""
    with pytest.raises(InvalidArgument, match="tp_degree="):
        ReferenceEngine.with_private_kv(TINY, num_blocks=1, tp_degree=degree)


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_shards_together_are_the_whole(degree: int) -> None:
    """The ranks' partial matrices multiply and add up to what one rank's whole matrices give."""
    whole = layer_shard(SMALL, 1, 0, 1, CPU)
    shards = [layer_shard(SMALL, 1, rank, degree, CPU) for rank in range(degree)]
    assert torch.equal(whole.attention_out, torch.cat([shard.attention_out for shard in shards], dim=1))
    assert torch.equal(whole.down, torch.cat([shard.down for shard in shards], dim=1))
    gate_up = [shard.gate_up.chunk(2) for shard in shards]
    assert torch.equal(whole.gate_up, torch.cat([gate for gate, _ in gate_up] + [up for _, up in gate_up]))
    q, kv = SMALL.num_heads * SMALL.head_dim // degree, SMALL.num_kv_heads * SMALL.head_dim // degree
    parts = zip(*(torch.split(shard.qkv, [q, kv, kv]) for shard in shards), strict=True)
    assert torch.equal(whole.qkv, torch.cat([row for part in parts for row in part]))


def test_another_process_draws_the_same_weights() -> None:
    """A process with other threads and another hash seed has the same weights and the same tokens."""
    with multiprocessing.get_context("spawn").Pool(1) as other:
        there = other.apply_async(fingerprint, (1,)).get(timeout=60)
    assert fingerprint(torch.get_num_threads()) == there


def test_another_seed_draws_other_weights() -> None:
    """The seed decides the weights."""
    other = ModelConfig(weight_seed=1)
    assert not torch.equal(replicated_weights(TINY, CPU).embedding, replicated_weights(other, CPU).embedding)


@pytest.mark.parametrize(
    ("view", "field"),
    [
        (torch.zeros(2, 3, 2, 16, 4, dtype=torch.bfloat16), "view.shape"),
        (torch.zeros(2, 3, 1, 16, 4, 8, dtype=torch.bfloat16), "view.shape[kv]"),
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
        ([(3, 5, 2, 16, 4, 8)], torch.bfloat16, "kv.num_layers"),
        ([(2, 5, 2, 16, 2, 8)], torch.bfloat16, "kv.num_kv_heads"),
        ([(2, 5, 2, 16, 4, 4)], torch.bfloat16, "kv.head_dim"),
        ([(2, 5, 2, 16, 4, 8)], torch.float16, "kv.dtype"),
        ([(2, 5, 2, 16, 2, 8), (2, 6, 2, 16, 2, 8)], torch.bfloat16, "kv[1].num_blocks"),
        ([(2, 5, 2, 16, 2, 8), (2, 5, 2, 8, 2, 8)], torch.bfloat16, "kv[1].block_tokens"),
    ],
)
def test_kv_that_does_not_fit_the_model_is_refused(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, field: str
) -> None:
    """KV of another model, or unlike its neighbours, is refused with an error that names the difference."""
    with pytest.raises(InvalidArgument) as refused:
        ReferenceEngine(SMALL, [PagedKV(torch.zeros(shape, dtype=dtype)) for shape in shapes])
    assert field == refused.value.metadata["field"]
