"""The reference decoder's KV as a worker layout."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.reference_engine.config import ModelConfig

GROUP = "full"
_FINGERPRINT_CHARS = 16


def model_name(config: ModelConfig) -> str:
    """A name that two engines share exactly when their models, weights included, are equal."""
    described = json.dumps(asdict(config), sort_keys=True)
    return f"reference-{hashlib.sha256(described.encode()).hexdigest()[:_FINGERPRINT_CHARS]}"


def engine_layout(
    config: ModelConfig, tensor_parallel: int, block_count: int, block_tokens: int, order: Sequence[str]
) -> WorkerLayout:
    """What the engine declares.

    Raises:
        LayoutInvalid: the heads do not divide, or a count is out of bounds.
    """
    model = DenseModel(
        model=model_name(config),
        layer_count=config.num_layers,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        tokens_per_block=block_tokens,
        element_type=ElementType(config.kv_dtype),
    )
    return dense_layout(model, block_count, tensor_parallel, order, GROUP)
