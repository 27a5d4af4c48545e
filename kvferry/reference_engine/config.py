"""Shape and numerics of the reference decoder."""

from dataclasses import dataclass

from kvferry.core.errors import InvalidArgument

COMPUTE_DTYPES = ("float64", "float32")
KV_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama-style decoder over bytes. The defaults are the small model that the demo runs on a CPU.

    Equal configs mean equal weights in every process and on every device: `weight_seed` is all that the
    weights depend on beside the shapes. `compute_dtype` is the type of weights and activations, `kv_dtype`
    that of keys and values in the pool. Computing in float64 keeps the rounding of another summation order
    (tensor parallel degree, chunking, device) some ten orders of magnitude below the distance between two
    logits.

    Raises:
        InvalidArgument: on construction, for the first field that cannot work.
    """

    num_layers: int = 4
    hidden_size: int = 256
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    mlp_size: int = 512
    vocab_size: int = 256
    max_tokens: int = 4096
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    weight_seed: int = 0
    compute_dtype: str = "float64"
    kv_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for field in (
            "num_layers",
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_size",
            "vocab_size",
            "max_tokens",
        ):
            require_int(field, getattr(self, field), at_least=1)
        require_int("weight_seed", self.weight_seed, at_least=0)
        for field in ("rope_theta", "norm_epsilon"):
            _require_positive(field, getattr(self, field))
        _require_one_of("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        _require_one_of("kv_dtype", self.kv_dtype, KV_DTYPES)
        if self.num_heads % self.num_kv_heads:
            raise InvalidArgument.of_field(
                "num_heads", self.num_heads, f"not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InvalidArgument.of_field("head_dim", self.head_dim, "odd: rotary embedding turns pairs")

    def check_tokens(self, tokens: int) -> None:
        """Refuse (InvalidArgument) a sequence of more positions than the model knows."""
        if tokens > self.max_tokens:
            raise InvalidArgument.of_field("tokens", tokens, f"above max_tokens={self.max_tokens}")

    def check_tp_degree(self, tp_degree: int) -> None:
        """Refuse (InvalidArgument) a degree that does not split KV heads and MLP columns evenly."""
        require_int("tp_degree", tp_degree, at_least=1)
        if self.num_kv_heads % tp_degree:
            raise InvalidArgument.of_field("tp_degree", tp_degree, f"does not divide num_kv_heads={self.num_kv_heads}")
        if self.mlp_size % tp_degree:
            raise InvalidArgument.of_field("tp_degree", tp_degree, f"does not divide mlp_size={self.mlp_size}")


def require_int(field: str, value: object, *, at_least: int) -> None:
    """Refuse (InvalidArgument) anything but an int (bool is not one) of at least `at_least`."""
    if type(value) is not int:
        raise InvalidArgument.of_field(field, value, "not an integer")
    if value < at_least:
        raise InvalidArgument.of_field(field, value, f"less than {at_least}")


def _require_positive(field: str, value: object) -> None:
    if type(value) not in (int, float):
        raise InvalidArgument.of_field(field, value, "not a number")
    if not 0 < value < float("inf"):  # type: ignore[operator]
        raise InvalidArgument.of_field(field, value, "not positive and finite")


def _require_one_of(field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidArgument.of_field(field, value, f"not one of {', '.join(allowed)}")


TINY = ModelConfig()
