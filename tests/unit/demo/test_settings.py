"""What can be chosen about the demo, and what is refused before anything is started."""

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry.core.layouts import end_bytes
from kvferry.demo.settings import DemoSettings, WorkerShape
from kvferry.launch.worker import WorkerSpec
from kvferry.reference_engine.parallelism import Parallelism
from kvferry.reference_engine.settings import settings_from
from kvferry.reference_engine.variants import engine_arguments, model_variant

MIB = 1 << 20


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("decode.tensor_parallel", WorkerShape(tensor_parallel=3)),
        ("decode.tensor_parallel", WorkerShape(tensor_parallel=16)),
        ("decode.pipeline_parallel", WorkerShape(pipeline_parallel=5)),
        ("decode.block_tokens", WorkerShape(block_tokens=0)),
        ("decode.block_tokens", WorkerShape(block_tokens=4097)),
        ("decode.layout", WorkerShape(memory_order="dhn")),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_by_name(field: str, shape: WorkerShape) -> None:
    """The error names the worker and the field, before any process is started."""
    with pytest.raises(ConfigInvalid) as refused:
        DemoSettings(decode=shape)
    assert field == refused.value.metadata["field"]
    assert f"{field}=" in refused.value.message


@pytest.mark.parametrize(
    "shape", [WorkerShape(), WorkerShape(tensor_parallel=8, block_tokens=128, pipeline_parallel=3)]
)
@pytest.mark.parametrize("mla", [False, True])
def test_pools_hold_the_layout(shape: WorkerShape, mla: bool) -> None:
    """A pool is the smallest number of huge pages that the largest rank's KV fits in, every layer group counted."""
    settings = DemoSettings(model=model_variant(mla=mla, window=100), decode=shape)
    layout = shape.layout(settings.model, settings.block_count(shape))
    ends = [end_bytes(layout.group(p.group), p) for rank in layout.ranks for p in rank.placements]
    size = settings.pool_bytes(shape)
    assert 0 == size % (2 * MIB)
    assert size - 2 * MIB < max(ends) <= size


def test_smaller_blocks_are_more_blocks() -> None:
    """The longest prompt fits whatever the block size, for all requests that are served at a time, twice."""
    settings = DemoSettings(concurrency=3)
    counts = [settings.block_count(WorkerShape(block_tokens=tokens)) for tokens in (16, 128)]
    assert [2 * 3 * 127, 2 * 3 * 16] == counts


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"mla": True, "window": 100},
        {"kv_heads": 8, "layers": 5, "kv_dtype": "float32", "weight_seed": 3},
    ],
)
def test_the_engine_reads_back_the_model_that_it_is_told(variant: dict[str, object]) -> None:
    """An engine that is started for a model runs exactly that model, in the shape that was chosen."""
    model = model_variant(**variant)  # type: ignore[arg-type]
    shape = WorkerShape(tensor_parallel=2, pipeline_parallel=2, block_tokens=32, memory_order="hnd")
    degrees = ["--tensor-parallel", "2", "--pipeline-parallel", "2"]
    read = settings_from(
        ["--control-socket", "engine.sock", *degrees, *shape.engine_arguments(), *engine_arguments(model)]
    )
    assert (model, Parallelism(2, 2), 32, "hnd") == (
        read.model,
        read.parallelism,
        read.block_tokens,
        read.memory_order,
    )


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("num_kv_heads", ["--mla", "--kv-heads", "4"]),
        ("num_kv_heads", ["--kv-heads", "0"]),
        ("num_heads", ["--kv-heads", "3"]),
        ("num_layers", ["--layers", "0"]),
        ("window_tokens", ["--window", "-1"]),
        ("tensor_parallel", ["--tensor-parallel", "3"]),
        ("pipeline_parallel", ["--pipeline-parallel", "9"]),
        ("block_tokens", ["--block-tokens", "0"]),
    ],
)
def test_an_engine_refuses_a_wrong_shape_by_name(field: str, arguments: list[str]) -> None:
    """A wrong value on the engine's command line is an error of configuration that names it."""
    with pytest.raises(ConfigInvalid) as refused:
        settings_from(["--control-socket", "engine.sock", *arguments])
    assert field == refused.value.metadata["field"]


@pytest.mark.parametrize(
    ("device", "prefill", "decode"),
    [("cpu", "cpu", "cpu"), ("cuda", "cuda:0", "cuda:0"), ("cuda:0,cuda:1", "cuda:0,cuda:1", "cuda:1,cuda:0")],
)
def test_ranks_take_gpus_in_turn(device: str, prefill: str, decode: str) -> None:
    """The decode's ranks go on where the prefill's ended."""
    settings = DemoSettings(device=device, prefill=WorkerShape(tensor_parallel=1))
    assert (prefill, decode) == (settings.pool_devices(0), settings.pool_devices(1))
    spec = WorkerSpec(name="w", role="decode", device=decode)
    assert decode.split(",") == list(dict.fromkeys(spec.device_of(rank) for rank in range(4)))


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cpu,cuda:0", "cuda:0,"])
def test_unknown_devices_are_refused(device: str) -> None:
    """What names no device is named."""
    with pytest.raises(ConfigInvalid, match="device="):
        DemoSettings(device=device)
