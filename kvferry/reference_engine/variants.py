"""The models that engines and the demo can be told to run."""

from kvferry.reference_engine.config import ModelConfig

_STANDARD = ModelConfig()
MLA_LATENT_DIM = 48
MLA_ROPE_DIM = 16


def model_variant(
    *,
    layers: int = _STANDARD.num_layers,
    kv_heads: int | None = None,
    mla: bool = False,
    window: int = 0,
    kv_dtype: str = _STANDARD.kv_dtype,
    weight_seed: int = 0,
) -> ModelConfig:
    """The small model with another number of layers or KV heads, with MLA, or with sliding windows.

    `kv_heads` None is the usual number: 1 with MLA.

    Raises:
        InvalidArgument: they do not go together; names the field.
    """
    return ModelConfig(
        num_layers=layers,
        num_kv_heads=kv_heads if kv_heads is not None else 1 if mla else _STANDARD.num_kv_heads,
        mla_latent_dim=MLA_LATENT_DIM if mla else 0,
        mla_rope_dim=MLA_ROPE_DIM if mla else 0,
        window_tokens=window,
        kv_dtype=kv_dtype,
        weight_seed=weight_seed,
    )


def engine_arguments(config: ModelConfig) -> list[str]:
    """The engine's command line arguments that make it run a variant."""
    arguments = ["--layers", str(config.num_layers), "--kv-heads", str(config.num_kv_heads)]
    arguments += ["--window", str(config.window_tokens), "--kv-dtype", config.kv_dtype]
    arguments += ["--weight-seed", str(config.weight_seed)]
    return [*arguments, "--mla"] if config.is_mla else arguments
