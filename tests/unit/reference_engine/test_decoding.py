"""Tokens of the engine: against dense mathematics, and however the sequence is cut, placed and sharded."""

import pytest
import torch

from kvferry.core.errors import BlockError, InvalidArgument
from kvferry.core.reasons import Reason
from kvferry.reference_engine.config import TINY, ModelConfig
from kvferry.reference_engine.generate import SINGLE, ReferenceEngine, generate_alone, greedy_token
from kvferry.reference_engine.model import Decoder
from kvferry.reference_engine.paged_kv import private_kv
from kvferry.reference_engine.parallelism import Parallelism, rank_shares
from kvferry.reference_engine.variants import model_variant
from tests.unit.reference_engine.dense_reference import dense_logits, dense_next_tokens
from tests.unit.reference_engine.pools import SMALL, text_tokens

NEW = 16

VARIANTS = {
    "mla": model_variant(layers=2, mla=True),
    "window": model_variant(layers=3, window=50),
    "window of one": model_variant(layers=2, window=1),
    "mla and window": model_variant(layers=2, mla=True, window=300),
    "8 KV heads": model_variant(layers=2, kv_heads=8),
    "1 KV head": model_variant(layers=2, kv_heads=1),
}


def paged_logits(config: ModelConfig, prompt: list[int]) -> torch.Tensor:
    """Logits after the prompt, from one rank over pages."""
    blocks = range(len(prompt) // 16 + 1)
    (share,) = rank_shares(config, SINGLE)
    decoder = Decoder(config, [private_kv(config, share, len(blocks), 16, torch.device("cpu"))], SINGLE)
    return decoder.forward(prompt, 0, dict.fromkeys(config.layer_groups, blocks))


@pytest.mark.parametrize("prompt_tokens", [1, 15, 16, 17, 2000])
def test_prefill_and_decode_equal_one_dense_forward(prompt_tokens: int) -> None:
    """Prefill and paged decode give the tokens of one dense forward over the whole sequence."""
    prompt = text_tokens(prompt_tokens)
    engine = ReferenceEngine.with_private_kv(TINY, num_blocks=126)
    first = engine.prefill(prompt, range(126))
    tokens = [first, *engine.decode(first, prompt_tokens, range(126), NEW - 1)]
    assert dense_next_tokens(TINY, prompt + tokens[:-1], NEW) == tokens


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "float32"])
def test_logits_equal_dense_logits_for_every_kv_type(kv_dtype: str) -> None:
    """Logits agree with dense ones that round keys and values to the KV type, far below that rounding."""
    config = ModelConfig(num_layers=2, kv_dtype=kv_dtype)
    prompt = text_tokens(300)
    torch.testing.assert_close(dense_logits(config, prompt)[-1], paged_logits(config, prompt), rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_its_dense_mathematics(variant: str) -> None:
    """Prefill over pages, and then decoding step by step, give the logits and tokens of one dense forward."""
    config = VARIANTS[variant]
    prompt = text_tokens(290)
    torch.testing.assert_close(dense_logits(config, prompt)[-1], paged_logits(config, prompt), rtol=0, atol=1e-9)
    tokens = generate_alone(config, prompt, NEW)
    assert dense_next_tokens(config, prompt + tokens[:-1], NEW) == tokens


def test_float32_compute_equals_dense_within_its_precision() -> None:
    """With float32 compute, logits stay within float32 rounding of the dense float64 ones."""
    config = ModelConfig(num_layers=2, compute_dtype="float32", kv_dtype="float32")
    prompt = text_tokens(100)
    logits = paged_logits(config, prompt)
    assert torch.float32 == logits.dtype
    torch.testing.assert_close(dense_logits(config, prompt)[-1], logits.double(), rtol=0, atol=1e-3)


def test_every_tensor_parallel_degree_gives_the_same_tokens() -> None:
    """One, two and four ranks decode the same tokens."""
    prompt = text_tokens(333)
    engines = [
        ReferenceEngine.with_private_kv(TINY, num_blocks=22, parallelism=Parallelism(degree)) for degree in (1, 2, 4)
    ]
    alone, two, four = (engine.generate(prompt, range(22), NEW) for engine in engines)
    assert alone == two
    assert alone == four


def test_block_order_and_block_size_do_not_matter() -> None:
    """Scattered block tables and other block sizes give the same tokens."""
    prompt = text_tokens(100)
    expected = generate_alone(SMALL, prompt, NEW)
    for block_tokens, num_blocks in ((1, 120), (5, 23), (16, 9), (64, 3)):
        engine = ReferenceEngine.with_private_kv(SMALL, num_blocks=num_blocks, block_tokens=block_tokens)
        table = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).tolist()
        assert expected == engine.generate(prompt, table, NEW)


@pytest.mark.parametrize("start", [1, 16, 50, 99])
def test_prefill_after_a_present_prefix_equals_a_whole_prefill(start: int) -> None:
    """A prefill that finds a prefix present continues to the same tokens."""
    prompt = text_tokens(100)
    engine = ReferenceEngine.with_private_kv(SMALL, num_blocks=8)
    engine.prefill(prompt[:start], range(8))
    first = engine.prefill(prompt, range(8), start=start)
    assert generate_alone(SMALL, prompt, NEW) == [first, *engine.decode(first, 100, range(8), NEW - 1)]


def test_decode_continues_where_it_stopped() -> None:
    """Decoding in two calls gives the tokens of one call."""
    prompt = text_tokens(30)
    engine = ReferenceEngine.with_private_kv(SMALL, num_blocks=4)
    first = engine.prefill(prompt, range(4))
    early = engine.decode(first, 30, range(4), 5)
    late = engine.decode(early[-1], 35, range(4), 10)
    assert generate_alone(SMALL, prompt, NEW) == [first, *early, *late]


def test_sequences_in_one_pool_do_not_disturb_each_other() -> None:
    """Two sequences whose decode steps alternate in one pool give the tokens that each gives alone."""
    prompts = [text_tokens(40), text_tokens(70)[::-1]]
    blocks = [[0, 2, 4, 6], [7, 5, 3, 1, 8, 9]]
    engine = ReferenceEngine.with_private_kv(SMALL, num_blocks=10)
    tokens = [[engine.prefill(p, b)] for p, b in zip(prompts, blocks, strict=True)]
    for step in range(NEW - 1):
        for prompt, table, seen in zip(prompts, blocks, tokens, strict=True):
            seen.extend(engine.decode(seen[-1], len(prompt) + step, table, 1))
    assert [generate_alone(SMALL, prompt, NEW) for prompt in prompts] == tokens


def test_no_new_tokens_is_an_empty_answer() -> None:
    """Decoding zero tokens returns none and needs no room for more."""
    engine = ReferenceEngine.with_private_kv(SMALL, num_blocks=1)
    first = engine.prefill(text_tokens(16), [0])
    assert engine.decode(first, 16, [0], 0) == []


def test_equal_logits_choose_the_lowest_id() -> None:
    """Of several largest logits the lowest token id wins."""
    assert greedy_token(torch.tensor([0.0, 2.0, -1.0, 2.0, 2.0])) == 1


@pytest.mark.parametrize(
    ("prompt", "blocks", "start", "error", "field"),
    [
        ([], [0], 0, InvalidArgument, "prompt_tokens"),
        ([1, 256], [0], 0, InvalidArgument, "prompt_tokens[1]"),
        ([-1], [0], 0, InvalidArgument, "prompt_tokens[0]"),
        ([True], [0], 0, InvalidArgument, "prompt_tokens[0]"),
        ([1], [0], 1, InvalidArgument, "start"),
        ([1], [0], -1, InvalidArgument, "start"),
        ([1] * 5000, [0, 1], 0, InvalidArgument, "tokens"),
        ([1], [2], 0, BlockError, "blocks[0]"),
        ([1], [0, -1], 0, BlockError, "blocks[1]"),
        ([1] * 17, [1, 1], 0, BlockError, "blocks[1]"),
        ([1] * 17, [0], 0, BlockError, "blocks"),
    ],
)
def test_prefill_refuses_bad_arguments_by_name(
    prompt: list[int], blocks: list[int], start: int, error: type[InvalidArgument | BlockError], field: str
) -> None:
    """Every bad argument of prefill is refused with an error that names it."""
    engine = ReferenceEngine.with_private_kv(SMALL, num_blocks=2)
    with pytest.raises(error) as refused:
        engine.prefill(prompt, blocks, start=start)
    assert field == refused.value.metadata["field"]


@pytest.mark.parametrize(
    ("first", "position", "blocks", "count", "field"),
    [
        (256, 3, [0], 1, "first_token"),
        (0, -1, [0], 1, "position"),
        (0, 3, [0], -1, "max_new_tokens"),
        (0, 3, [0], 14, "blocks"),
        (0, 4090, [0, 1], 7, "tokens"),
    ],
)
def test_decode_refuses_bad_arguments_by_name(
    first: int, position: int, blocks: list[int], count: int, field: str
) -> None:
    """Every bad argument of decode is refused with an error that names it."""
    engine = ReferenceEngine.with_private_kv(SMALL, num_blocks=2)
    with pytest.raises((InvalidArgument, BlockError)) as refused:
        engine.decode(first, position, blocks, count)
    assert field == refused.value.metadata["field"]


def test_too_few_blocks_for_the_whole_generation_are_refused_before_prefill() -> None:
    """Generate refuses blocks that hold the prompt but not the generated tokens, and says what was short."""
    engine = ReferenceEngine.with_private_kv(SMALL, num_blocks=2)
    with pytest.raises(BlockError, match="17 tokens need 2 blocks of 16 tokens") as refused:
        engine.generate(text_tokens(10), [0], 8)
    assert refused.value.reason is Reason.BLOCK_COUNT_MISMATCH


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_cuda_gives_the_tokens_of_the_cpu() -> None:
    """An engine whose KV lies on a GPU computes there and decodes the tokens of the CPU."""
    prompt = text_tokens(500)
    engine = ReferenceEngine.with_private_kv(TINY, num_blocks=33, parallelism=Parallelism(2), device="cuda")
    assert generate_alone(TINY, prompt, NEW) == engine.generate(prompt, range(33), NEW)
