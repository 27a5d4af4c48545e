"""``kvferry bench latency``."""

import re

from kvferry.bench.latency import measure_latency
from kvferry.cli.figures import milliseconds, parse_size
from kvferry.cli.terminal import console, error_console, print_json, table
from kvferry.core.errors import ConfigInvalid

_POOL_DEVICE = re.compile(r"cpu|cuda(:\d{1,4})?")


async def latency(size: str, block: str, *, device: str, repeats: int, json_output: bool) -> None:
    """Measure pulls, unary calls and bare messages, and show all."""
    total_bytes, block_bytes = parse_size("size", size), parse_size("block", block)
    pools = pool_device(device)
    with error_console().status("starting two workers") as status:
        done = 0

        def on_round() -> None:
            nonlocal done
            done += 1
            status.update(f"round {done} of {repeats}")

        result = await measure_latency(pools, repeats, on_round, total_bytes=total_bytes, block_bytes=block_bytes)
    if json_output:
        print_json(result.to_dict())
        return
    rows = [
        (
            method,
            milliseconds(timing.quantile_s(0.5)),
            milliseconds(timing.quantile_s(0.99)),
            f"{result.ratio(method):.2f}",
        )
        for method, timing in result.timings.items()
    ]
    title = f"{size} in blocks of {block}, {repeats} rounds in turns; p99 / p50 of the pull: {result.p99_to_p50:.2f}"
    console().print(table(title, ("call", "p50 ms", "p99 ms", "pull's p50 / its p50"), rows, right=3))


def pool_device(device: str, *, field: str = "device") -> str:
    """Where a benchmark's pools are, as data planes are told. Raises ConfigInvalid."""
    if _POOL_DEVICE.fullmatch(device) is None:
        raise ConfigInvalid.of_field(field, device, "must be cpu, cuda or cuda:N")
    return "cuda:0" if device == "cuda" else device
