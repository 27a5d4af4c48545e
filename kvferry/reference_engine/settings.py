"""The reference engine's command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.core.dense import CROSS_LAYER, HND, NHD
from kvferry.core.errors import ConfigInvalid
from kvferry.rpc.addresses import check_address

MEMORY_ORDERS = {"nhd": NHD, "hnd": HND, "cross-layer": CROSS_LAYER}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a reference engine is run."""

    control_socket: Path
    listen: str
    tensor_parallel: int
    device: str
    """``cpu`` or ``cuda``: where the pools must lie."""
    block_count: int
    """Blocks of each rank."""
    block_tokens: int
    memory_order: str
    """A key of ``MEMORY_ORDERS``."""
    weight_seed: int
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
    settings = EngineSettings(**vars(_parser().parse_args(arguments)))
    check_address("listen", settings.listen)
    for field in ("tensor_parallel", "block_count", "block_tokens", "max_calls"):
        if getattr(settings, field) < 1:
            raise ConfigInvalid.of_field(field, getattr(settings, field), "must be at least 1")
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kvferry.reference_engine",
        description="A small decoder that serves one worker: it prefills and publishes, pulls and decodes.",
    )
    parser.add_argument("--control-socket", type=Path, required=True, help="the worker's engine socket")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port for routers")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="ranks, all in this process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the pools must lie")
    parser.add_argument("--block-count", type=int, default=1024, help="KV blocks of each rank")
    parser.add_argument("--block-tokens", type=int, default=16, help="tokens of a KV block")
    parser.add_argument("--memory-order", choices=sorted(MEMORY_ORDERS), default="nhd", help="order of axes")
    parser.add_argument("--weight-seed", type=int, default=0, help="equal seeds make equal models")
    parser.add_argument("--engine-id", default="reference", help="the same in every life of this engine")
    parser.add_argument("--max-calls", type=int, default=64, help="calls served at a time")
    parser.add_argument("--ready-fd", type=int, help="write one JSON line to this descriptor when serving")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument("--log-format", choices=("auto", "json", "console"), default="auto")
    return parser
