"""The reference engine's command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.core.dense import CROSS_LAYER, HND, NHD
from kvferry.core.errors import ConfigInvalid, InvalidArgument
from kvferry.reference_engine.config import KV_DTYPES, ModelConfig
from kvferry.reference_engine.parallelism import Parallelism
from kvferry.reference_engine.variants import model_variant
from kvferry.rpc.addresses import check_address

MEMORY_ORDERS = {"nhd": NHD, "hnd": HND, "cross-layer": CROSS_LAYER}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a reference engine is run."""

    control_socket: Path
    listen: str
    model: ModelConfig
    parallelism: Parallelism
    device: str
    """``cpu`` or ``cuda``: where the pools must lie."""
    block_count: int
    """Blocks of each layer group on each rank."""
    block_tokens: int
    memory_order: str
    """A key of ``MEMORY_ORDERS``."""
    engine_id: str
    max_calls: int
    """Calls that are served at a time; more are refused."""
    ready_fd: int | None
    log_level: str
    log_format: str


def settings_from(arguments: Sequence[str] | None) -> EngineSettings:
    """Read the command line.

    Raises:
        ConfigInvalid: a value is wrong; names it.
    """
    values = vars(_parser().parse_args(arguments))
    check_address("listen", values["listen"])
    for field in ("block_count", "block_tokens", "max_calls"):
        if values[field] < 1:
            raise ConfigInvalid.of_field(field, values[field], "must be at least 1")
    try:
        model = model_variant(
            layers=values.pop("layers"),
            kv_heads=values.pop("kv_heads"),
            mla=values.pop("mla"),
            window=values.pop("window"),
            kv_dtype=values.pop("kv_dtype"),
            weight_seed=values.pop("weight_seed"),
        )
        parallelism = Parallelism(values.pop("tensor_parallel"), values.pop("pipeline_parallel"))
        parallelism.check(model)
    except InvalidArgument as error:
        raise ConfigInvalid(error.message, metadata=error.metadata) from error
    return EngineSettings(model=model, parallelism=parallelism, **values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kvferry.reference_engine",
        description="A small decoder that serves one worker: it prefills and publishes, pulls and decodes.",
    )
    parser.add_argument("--control-socket", type=Path, required=True, help="the worker's engine socket")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port for routers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the pools must lie")
    parser.add_argument("--engine-id", default="reference", help="the same in every life of this engine")
    parser.add_argument("--max-calls", type=int, default=64, help="calls served at a time")
    parser.add_argument("--ready-fd", type=int, help="write one JSON line to this descriptor when serving")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument("--log-format", choices=("auto", "json", "console"), default="auto")
    _add_layout(parser.add_argument_group("how KV lies"))
    _add_model(parser.add_argument_group("the model"))
    return parser


def _add_layout(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tensor-parallel", type=int, default=1, help="ranks of a pipeline stage")
    group.add_argument(
        "--pipeline-parallel", type=int, default=1, help="pipeline stages; all ranks are in this process"
    )
    group.add_argument("--block-count", type=int, default=1024, help="KV blocks of each layer group on each rank")
    group.add_argument("--block-tokens", type=int, default=16, help="tokens of a KV block")
    group.add_argument("--memory-order", choices=sorted(MEMORY_ORDERS), default="nhd", help="order of axes")


def _add_model(group: argparse._ArgumentGroup) -> None:
    standard = ModelConfig()
    group.add_argument("--layers", type=int, default=standard.num_layers, help="layers")
    group.add_argument("--kv-heads", type=int, help="KV heads; MLA has one")
    group.add_argument("--mla", action="store_true", help="multi-head latent attention")
    group.add_argument("--window", type=int, default=0, help="tokens that every second layer sees; 0: all")
    group.add_argument("--kv-dtype", choices=KV_DTYPES, default=standard.kv_dtype, help="element type of KV")
    group.add_argument("--weight-seed", type=int, default=0, help="equal seeds make equal models")
