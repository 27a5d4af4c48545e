"""How many bytes the demo's pulls must move, worked out from the model and the destination's degree alone."""

from collections.abc import Iterable

from kvferry.reference_engine.config import ModelConfig

_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def copied_tokens(prompt_tokens: int, window_tokens: int) -> int:
    """The tokens of a layer that the decode worker needs, and no other; of a sliding window its last ones."""
    return min(prompt_tokens, window_tokens) if window_tokens else prompt_tokens


def expected_bytes(config: ModelConfig, destination_tensor_parallel: int, prompt_lengths: Iterable[int]) -> int:
    """Bytes that pulls of these prompts read.

    A layer is held by the ranks of one pipeline stage, however many stages there are. Each of them reads what it
    holds: its share of the KV heads, or one head that others read as well.
    """
    heads_read = max(config.num_kv_heads, destination_tensor_parallel)
    row_bytes = config.kv_factor * heads_read * config.kv_dim * _ELEMENT_BYTES[config.kv_dtype]
    windows = [config.window_tokens if layer % 2 else 0 for layer in range(config.num_layers)]
    return row_bytes * sum(copied_tokens(length, window) for length in prompt_lengths for window in windows)
