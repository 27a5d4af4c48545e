"""Shape and numerics of the reference decoder."""

from dataclasses import dataclass

from kvferry.core.errors import InvalidArgument

COMPUTE_DTYPES = ("float64", "float32")
KV_DTYPES = ("bfloat16", "float16", "float32")

FULL = "full"
"""The group of layers that see all of a sequence."""
WINDOW = "window"
"""The group of layers that see a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama-style decoder over bytes. The defaults are the small model that the demo runs on a CPU.

    Equal configs mean equal weights in every process and on every device: `weight_seed` is all that the
    weights depend on beside the shapes. `compute_dtype` is the type of weights and activations, `kv_dtype`
    that of keys and values in the pool. Computing in float64 keeps the rounding of another summation order
    (tensor parallel degree, chunking, device) some ten orders of magnitude below the distance between two
    logits.

    With `window_tokens` every second layer sees only that many tokens, the newest included. With
    `mla_latent_dim` attention is MLA: a token's KV is one latent and `mla_rope_dim` rotary numbers that all
    heads share, so `num_kv_heads` is 1.

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
    mla_latent_dim: int = 0
    mla_rope_dim: int = 0
    window_tokens: int = 0

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
        for field in ("weight_seed", "mla_latent_dim", "mla_rope_dim", "window_tokens"):
            require_int(field, getattr(self, field), at_least=0)
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
        self._check_mla()

    @property
    def is_mla(self) -> bool:
        """Whether a token's KV is one latent."""
        return self.mla_latent_dim > 0

    @property
    def kv_factor(self) -> int:
        """2 where keys and values are stored, 1 for latents."""
        return 1 if self.is_mla else 2

    @property
    def kv_dim(self) -> int:
        """Numbers that one head stores for a token, keys and values counted apart."""
        return self.mla_latent_dim + self.mla_rope_dim if self.is_mla else self.head_dim

    @property
    def layer_groups(self) -> dict[str, tuple[int, ...]]:
        """Layers by group; a group without layers is left out."""
        groups = {FULL: tuple(range(self.num_layers))}
        if self.window_tokens:
            groups = {FULL: groups[FULL][::2], WINDOW: groups[FULL][1::2]}
        return {name: layers for name, layers in groups.items() if layers}

    def group_of(self, layer: int) -> str:
        """The group that `layer` is in."""
        return WINDOW if self.window_tokens and layer % 2 else FULL

    def window_of(self, group: str) -> int:
        """Tokens that the group's layers see; 0: all."""
        return self.window_tokens if group == WINDOW else 0

    def check_tokens(self, tokens: int) -> None:
        """Refuse (InvalidArgument) a sequence of more positions than the model knows."""
        if tokens > self.max_tokens:
            raise InvalidArgument.of_field("tokens", tokens, f"above max_tokens={self.max_tokens}")

    def _check_mla(self) -> None:
        if not self.is_mla:
            if self.mla_rope_dim:
                raise InvalidArgument.of_field("mla_rope_dim", self.mla_rope_dim, "without mla_latent_dim")
            return
        if self.num_kv_heads != 1:
            raise InvalidArgument.of_field("num_kv_heads", self.num_kv_heads, "MLA has one latent for all heads")
        if self.mla_rope_dim % 2 or not self.mla_rope_dim:
            raise InvalidArgument.of_field("mla_rope_dim", self.mla_rope_dim, "not even and above 0")


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
