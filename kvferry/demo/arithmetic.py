"""How many bytes the demo's pulls must move, worked out from the model and the destination's degree alone."""

from collections.abc import Callable, Iterable

from kvferry.reference_engine.config import ModelConfig

_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

CopiedTokens = Callable[[int, int, int], int]
"""How many tokens of a layer are copied for (prompt tokens, the layer's window or 0, tokens of a source block)."""


def exact_tokens(prompt_tokens: int, window_tokens: int, _block_tokens: int) -> int:
    """The tokens that the decode worker needs, and no other; of a sliding window its last ones."""
    return min(prompt_tokens, window_tokens) if window_tokens else prompt_tokens


def whole_block_tokens(prompt_tokens: int, _window_tokens: int, block_tokens: int) -> int:
    """All tokens that the published blocks have room for."""
    return (prompt_tokens + block_tokens - 1) // block_tokens * block_tokens


COPIED_TOKENS: CopiedTokens = exact_tokens
"""What pulls copy at present."""


def expected_bytes(
    config: ModelConfig,
    destination_tensor_parallel: int,
    source_block_tokens: int,
    prompt_lengths: Iterable[int],
    copied_tokens: CopiedTokens | None = None,
) -> int:
    """Bytes that pulls of these prompts read.

    A layer is held by the ranks of one pipeline stage, however many stages there are. Each of them reads what it
    holds: its share of the KV heads, or one head that others read as well.
    """
    copied = copied_tokens or COPIED_TOKENS
    heads_read = max(config.num_kv_heads, destination_tensor_parallel)
    row_bytes = config.kv_factor * heads_read * config.kv_dim * _ELEMENT_BYTES[config.kv_dtype]
    windows = [config.window_tokens if layer % 2 else 0 for layer in range(config.num_layers)]
    rows = sum(copied(length, window, source_block_tokens) for length in prompt_lengths for window in windows)
    return rows * row_bytes
