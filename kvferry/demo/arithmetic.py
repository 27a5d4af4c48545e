"""How many bytes the demo's pulls must move, worked out from the model's configuration alone."""

from collections.abc import Iterable

from kvferry.reference_engine.config import ModelConfig

_KEYS_AND_VALUES = 2
_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def block_bytes(config: ModelConfig, block_tokens: int) -> int:
    """Bytes of one KV block over all ranks together."""
    elements = config.num_layers * _KEYS_AND_VALUES * config.num_kv_heads * block_tokens * config.head_dim
    return elements * _ELEMENT_BYTES[config.kv_dtype]


def expected_bytes(config: ModelConfig, block_tokens: int, prompt_lengths: Iterable[int]) -> int:
    """Bytes of the blocks that hold these prompts; a last block counts whole."""
    blocks = sum((length + block_tokens - 1) // block_tokens for length in prompt_lengths)
    return blocks * block_bytes(config, block_tokens)
