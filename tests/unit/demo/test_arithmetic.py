"""The bytes that the demo's pulls must move, by hand."""

import pytest

from kvferry.demo.arithmetic import copied_tokens, expected_bytes
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
    assert expected == expected_bytes(config, tensor_parallel, [1])


def test_a_window_copies_its_end_only() -> None:
    """Without a window every token is copied, with one at most its length."""
    assert (17, 10, 7) == (copied_tokens(17, 0), copied_tokens(17, 10), copied_tokens(7, 10))


def test_only_every_second_layer_has_the_window() -> None:
    """Of three layers two copy 17 tokens and one copies 10."""
    assert (17 + 10 + 17) * 2 * 2 * 8 * 2 == expected_bytes(WINDOWED, 1, [17])


def test_prompts_add_up() -> None:
    """Several prompts need the sum of what each needs."""
    assert (16 + 17) * 192 == expected_bytes(GROUPED, 1, [16, 17])
