"""The bytes that the demo's pulls must move, by hand."""

import pytest

from kvferry.demo.arithmetic import exact_tokens, expected_bytes, whole_block_tokens
from kvferry.reference_engine.config import ModelConfig

GROUPED = ModelConfig(num_layers=3, num_kv_heads=2, num_heads=4, head_dim=8)
LATENT = ModelConfig(num_layers=3, num_kv_heads=1, num_heads=4, head_dim=8, mla_latent_dim=12, mla_rope_dim=4)
WINDOWED = ModelConfig(num_layers=3, num_kv_heads=2, num_heads=4, head_dim=8, window_tokens=10)


@pytest.mark.parametrize(
    ("config", "tensor_parallel", "expected"),
    [
        # layers x K and V x heads x dimension x bytes of a number
        (GROUPED, 1, 3 * 2 * 2 * 8 * 2),
        (GROUPED, 2, 3 * 2 * 2 * 8 * 2),
        # Two ranks hold each head, and both read it.
        (GROUPED, 4, 3 * 2 * 4 * 8 * 2),
        (LATENT, 1, 3 * 1 * 1 * 16 * 2),
        (LATENT, 4, 3 * 1 * 4 * 16 * 2),
        (ModelConfig(num_layers=1, num_kv_heads=1, head_dim=8, kv_dtype="float32"), 1, 2 * 8 * 4),
    ],
)
def test_bytes_of_one_token(config: ModelConfig, tensor_parallel: int, expected: int) -> None:
    """A token's bytes are what every destination rank holds of it, heads that several hold once for each."""
    assert expected == expected_bytes(config, tensor_parallel, 16, [1], exact_tokens)


def test_exact_tokens_are_the_prompt_and_of_a_window_its_end() -> None:
    """Without a window every token counts, with one at most its length."""
    assert (17, 10, 7) == (exact_tokens(17, 0, 16), exact_tokens(17, 10, 16), exact_tokens(7, 10, 16))


def test_whole_blocks_count_the_last_block_whole_and_no_window() -> None:
    """17 tokens fill two blocks of 16."""
    assert (32, 32, 16) == tuple(
        whole_block_tokens(tokens, window, 16) for tokens, window in ((17, 0), (17, 10), (16, 0))
    )


def test_only_every_second_layer_has_the_window() -> None:
    """Of three layers two copy 17 tokens and one copies 10."""
    assert (17 + 10 + 17) * 2 * 2 * 8 * 2 == expected_bytes(WINDOWED, 1, 16, [17], exact_tokens)


def test_prompts_add_up() -> None:
    """Several prompts need the sum of what each needs, with whole blocks of the source's size too."""
    assert (16 + 17) * 192 == expected_bytes(GROUPED, 1, 16, [16, 17], exact_tokens)
    assert (16 + 32) * 192 == expected_bytes(GROUPED, 1, 16, [16, 17], whole_block_tokens)
    assert (64 + 64) * 192 == expected_bytes(GROUPED, 1, 64, [16, 17], whole_block_tokens)
