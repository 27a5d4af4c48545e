"""What can be chosen about the demo."""

import re
from dataclasses import dataclass
from pathlib import Path

from kvferry.core.errors import ConfigInvalid, InvalidArgument, KvferryError, LayoutInvalid
from kvferry.core.layouts import WorkerLayout
from kvferry.demo.prompts import PROMPT_TOKENS_MAX
from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.layout import engine_layout, pool_bytes_needed
from kvferry.reference_engine.paged_kv import blocks_needed
from kvferry.reference_engine.parallelism import Parallelism
from kvferry.reference_engine.settings import MEMORY_ORDERS

MODEL = ModelConfig()
MAX_NEW_TOKENS = 24
TTL_S = 60.0
PULL_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 10.0
_POOL_GRAIN_BYTES = 2 << 20
"""Pools are whole huge pages."""
_DEVICES = re.compile(r"cpu|cuda|cuda:\d{1,4}(,cuda:\d{1,4})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShape:
    """How a worker holds KV."""

    tensor_parallel: int = 2
    pipeline_parallel: int = 1
    block_tokens: int = 16
    memory_order: str = "nhd"
    """A key of ``MEMORY_ORDERS``."""

    @property
    def parallelism(self) -> Parallelism:
        """As the engine takes it."""
        return Parallelism(self.tensor_parallel, self.pipeline_parallel)

    def layout(self, model: ModelConfig, block_count: int) -> WorkerLayout:
        """The layout that a worker of this shape declares.

        Raises:
            InvalidArgument, LayoutInvalid: it does not fit the model; names the field.
        """
        order = MEMORY_ORDERS[self.memory_order]
        return engine_layout(model, self.parallelism, block_count, self.block_tokens, order)

    def engine_arguments(self) -> list[str]:
        """As the engine's command line takes it, without the degrees."""
        return ["--block-tokens", str(self.block_tokens), "--memory-order", self.memory_order]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """How the demo is run.

    Raises:
        ConfigInvalid: names the field that is wrong, of a worker's shape with ``prefill.`` or ``decode.`` before it.
    """

    device: str = "cpu"
    """Where pools lie: ``cpu``, or ``cuda`` for the first GPU, or GPUs as in ``cuda:0,cuda:1``.

    Of several the ranks take one after the other, those of the prefill worker first.
    """
    request_count: int = 16
    concurrency: int = 8
    directory: Path | None = None
    """Where configuration and logs are kept; None: nowhere."""
    model: ModelConfig = MODEL
    prefill: WorkerShape = WorkerShape()
    decode: WorkerShape = WorkerShape()
    data_plane_flags: tuple[str, ...] = ()
    """What data planes are told beyond what follows from the fields here."""
    control_flags: tuple[str, ...] = ()
    """The same of controls."""

    def __post_init__(self) -> None:
        if _DEVICES.fullmatch(self.device) is None:
            raise ConfigInvalid.of_field("device", self.device, "must be cpu, cuda, or GPUs as in cuda:0,cuda:1")
        for name, shape in (("prefill", self.prefill), ("decode", self.decode)):
            if shape.memory_order not in MEMORY_ORDERS:
                why = f"must be one of {', '.join(MEMORY_ORDERS)}"
                raise ConfigInvalid.of_field(f"{name}.layout", shape.memory_order, why)
            if not 1 <= shape.block_tokens <= self.model.max_tokens:
                why = f"must be 1 to {self.model.max_tokens}"
                raise ConfigInvalid.of_field(f"{name}.block_tokens", shape.block_tokens, why)
            try:
                shape.layout(self.model, self.block_count(shape))
            except (InvalidArgument, LayoutInvalid) as error:
                raise config_error(error, f"{name}.") from error

    @property
    def device_kind(self) -> str:
        """What engines compute on: ``cpu`` or ``cuda``."""
        return self.device.partition(":")[0]

    def pool_devices(self, ranks_before: int) -> str:
        """Where the pools of a worker lie, as :class:`WorkerSpec` takes it; other ranks took their devices before."""
        devices = ["cuda:0"] if self.device == "cuda" else self.device.split(",")
        first = ranks_before % len(devices)
        return ",".join(devices[first:] + devices[:first])

    def block_count(self, shape: WorkerShape) -> int:
        """Blocks of each layer group: room for the longest prompt in every request that is served at a time."""
        blocks_each = blocks_needed(PROMPT_TOKENS_MAX + MAX_NEW_TOKENS, shape.block_tokens)
        # A prefilled request keeps its blocks until its decode has pulled them, so both halves may be full.
        return 2 * self.concurrency * blocks_each

    def pool_bytes(self, shape: WorkerShape) -> int:
        """Size of each rank's pool."""
        needed = pool_bytes_needed(shape.layout(self.model, self.block_count(shape)))
        return -(-needed // _POOL_GRAIN_BYTES) * _POOL_GRAIN_BYTES


def config_error(error: KvferryError, prefix: str = "") -> ConfigInvalid:
    """``error`` about a field as one about the command line, the field named with ``prefix``."""
    metadata = {**error.metadata, "field": prefix + error.metadata.get("field", "")}
    return ConfigInvalid(prefix + error.message, metadata=metadata)
