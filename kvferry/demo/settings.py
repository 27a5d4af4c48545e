"""What can be chosen about the demo."""

from dataclasses import dataclass
from pathlib import Path

from kvferry.core.errors import ConfigInvalid
from kvferry.demo.prompts import PROMPT_TOKENS_MAX
from kvferry.reference_engine.config import ModelConfig

MODEL = ModelConfig()
RANKS = 2
BLOCK_TOKENS = 16
MAX_NEW_TOKENS = 24
TTL_S = 60.0
PULL_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 10.0
_POOL_GRAIN_BYTES = 2 << 20
"""Pools are whole huge pages."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """How the demo is run.

    Raises:
        ConfigInvalid: ``device`` is neither cpu nor cuda.
    """

    device: str = "cpu"
    request_count: int = 16
    concurrency: int = 8
    directory: Path | None = None
    """Where configuration and logs are kept; None: nowhere."""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ConfigInvalid.of_field("device", self.device, "must be cpu or cuda")

    @property
    def pool_device(self) -> str:
        """The device of every rank's pool, as data planes are told."""
        return "cuda:0" if self.device == "cuda" else "cpu"

    @property
    def block_count(self) -> int:
        """Blocks of each rank: room for the longest prompt in every request that is served at a time."""
        blocks_each = -(-(PROMPT_TOKENS_MAX + MAX_NEW_TOKENS) // BLOCK_TOKENS)
        # A prefilled request keeps its blocks until its decode has pulled them, so both halves may be full.
        return 2 * self.concurrency * blocks_each

    def pool_bytes(self, block_bytes: int) -> int:
        """Size of each rank's pool, where ``block_bytes`` is a block over all ranks."""
        needed = self.block_count * block_bytes // RANKS
        return -(-needed // _POOL_GRAIN_BYTES) * _POOL_GRAIN_BYTES
