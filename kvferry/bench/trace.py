"""``bench trace``: real arrivals and prompt lengths, replayed through a pair of workers."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.bench.ferry_pair import FerryEngines, FerryPair
from kvferry.bench.host import host_info
from kvferry.bench.network import open_network
from kvferry.bench.trace_figures import TraceRow
from kvferry.bench.trace_file import TraceRequest, read_trace
from kvferry.bench.trace_replay import Replay, ReplayOptions
from kvferry.bench.transfer_settings import PATHS
from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import ConfigInvalid
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.launch.cluster import LocalCluster

SEED = 23
LAYERS = 80
_KV_HEADS = 1
_HEAD_DIM = 128
_TOKENS_PER_BLOCK = 16
_LAYER_TOKEN_BYTES = 2 * _KV_HEADS * _HEAD_DIM * ElementType.BFLOAT16.size_bytes


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What is replayed, and on what.

    KV is that of one rank of a model of 70 billion parameters on eight: 80 layers of one KV head of 128 in bfloat16, 40
    KiB a token. ``scale`` keeps that part of the layers: pieces stay as large as they are, 4 KiB, and become fewer.
    """

    file: Path
    device: str
    path: str
    network: str
    scale: float
    speed: float
    request_count: int
    in_flight: int
    pool_bytes: int
    verify_every: int
    """Every so manieth request is compared byte for byte."""
    prefix_present: tuple[bool, ...]

    @property
    def layer_count(self) -> int:
        """Layers that ``scale`` keeps, at least one."""
        return max(1, round(LAYERS * self.scale))

    @property
    def token_bytes(self) -> int:
        """KV of one token."""
        return self.layer_count * _LAYER_TOKEN_BYTES

    @property
    def block_count(self) -> int:
        """Blocks of each pool."""
        return self.pool_bytes // (self.token_bytes * _TOKENS_PER_BLOCK)

    def layout(self) -> WorkerLayout:
        """Of both workers."""
        model = DenseModel(
            model="trace",
            layer_count=self.layer_count,
            kv_heads=_KV_HEADS,
            head_dim=_HEAD_DIM,
            tokens_per_block=_TOKENS_PER_BLOCK,
            element_type=ElementType.BFLOAT16,
        )
        return dense_layout(model, block_count=self.block_count)

    def check(self, requests: Sequence[TraceRequest]) -> None:
        """Raise ConfigInvalid for what cannot be replayed; names the field."""
        if self.path not in PATHS:
            raise ConfigInvalid.of_field("path", self.path, f"must be one of {', '.join(PATHS)}")
        if not 0 < self.scale <= 1:
            raise ConfigInvalid.of_field("scale", self.scale, "must be above 0 and at most 1")
        longest = max(requests, key=lambda request: request.input_tokens)
        needed = -(-longest.input_tokens // _TOKENS_PER_BLOCK)
        if needed > self.block_count:
            size = needed * _TOKENS_PER_BLOCK * self.token_bytes
            raise ConfigInvalid.of_field(
                "pool", self.pool_bytes, f"line {longest.line} alone needs {size} bytes: enlarge it, or lower the scale"
            )

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "path": self.path,
            "device": self.device,
            "network": self.network,
            "scale": self.scale,
            "bytes_per_token": self.token_bytes,
            "block_tokens": _TOKENS_PER_BLOCK,
            "speed": self.speed,
            "in_flight": self.in_flight,
            "pool_bytes": self.pool_bytes,
        }


async def replay_trace(settings: TraceSettings, on_stage: Callable[[str], None]) -> AsyncGenerator[TraceRow]:
    """Replay the trace once for each of ``prefix_present``; a row after each. Failed pulls are counted, not raised.

    Raises:
        ConfigInvalid: the file or a setting is wrong.
        TransportFailed: a byte was wrong, or a pull did not take the path that was forced.
        ProcessError: a process failed.
    """
    requests = read_trace(settings.file, settings.request_count)
    settings.check(requests)
    on_stage("starting two workers")
    layout = settings.layout()
    with open_network(settings.network, settings.device) as network:
        async with LocalCluster(etcd_namespace=network.source.namespace) as cluster:
            pair = await FerryPair.start(
                cluster, settings.device, settings.pool_bytes, path=settings.path, network=network
            )
            host = host_info(pair.transport_settings())
            async with FerryEngines(pair, layout=layout) as engines:
                await engines.fill(SEED)
                for present in settings.prefix_present:
                    on_stage(f"{len(requests)} requests {'with' if present else 'without'} the prefixes present")
                    options = ReplayOptions(
                        settings.path, settings.speed, settings.in_flight, settings.verify_every, present
                    )
                    replay = await Replay.prepare(engines, layout, options)
                    started = time.perf_counter()
                    figures = await replay.run(requests)
                    wall_s = time.perf_counter() - started
                    cluster.check_running()
                    yield TraceRow(present, settings.to_dict(), figures, wall_s, host)
