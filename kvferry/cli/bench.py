"""``kvferry bench``."""

from kvferry.bench.latency import measure_latency
from kvferry.bench.transfer import METHODS, RAW_DEFAULT, RAW_TUNED, TransferCase, TransferSettings, measure_transfers
from kvferry.cli.figures import milliseconds, parse_size, rate_text, size_text
from kvferry.cli.terminal import console, error_console, print_json, table
from kvferry.core.errors import ConfigInvalid

_POOL_DEVICES = {"cpu": "cpu", "cuda": "cuda:0"}
_COLUMNS = ("block", "total", "descriptors", *(f"{m} ms" for m in METHODS), *(f"{m} GB/s" for m in METHODS))
_RATIOS = ("kvferry / raw_default", "kvferry / raw_tuned")


async def transfer(blocks: str, sizes: str, *, device: str, repeats: int, json_output: bool) -> None:
    """Measure pulls and show every case."""
    settings = TransferSettings(
        device=pool_device(device),
        block_sizes=tuple(parse_size("blocks", text) for text in blocks.split(",")),
        total_sizes=tuple(parse_size("sizes", text) for text in sizes.split(",")),
        repeats=repeats,
    )
    with error_console().status("") as status:
        cases = await measure_transfers(settings, status.update)
    if json_output:
        found = {"device": settings.device, "repeats": repeats, "cases": [case.to_dict() for case in cases]}
        print_json(found)
    else:
        title = f"a pull of random blocks, medians of {repeats} rounds in turns; ratios of times"
        rows = [_case_row(case) for case in cases]
        console().print(table(title, (*_COLUMNS, *_RATIOS), rows, right=len(_COLUMNS) + len(_RATIOS)))


async def latency(*, device: str, repeats: int, json_output: bool) -> None:
    """Measure one-block pulls and unary calls, and show both."""
    pools = pool_device(device)
    with error_console().status("starting two workers") as status:
        done = 0

        def on_round() -> None:
            nonlocal done
            done += 1
            status.update(f"round {done} of {repeats}")

        result = await measure_latency(pools, repeats, on_round)
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
    title = f"one block of 4 KiB, {repeats} rounds in turns; p99 / p50 of the pull: {result.p99_to_p50:.2f}"
    console().print(table(title, ("call", "p50 ms", "p99 ms", "pull's p50 / its p50"), rows, right=3))


def pool_device(device: str) -> str:
    """Where a benchmark's pools are. Raises ConfigInvalid."""
    if device not in _POOL_DEVICES:
        raise ConfigInvalid.of_field("device", device, "must be cpu or cuda")
    return _POOL_DEVICES[device]


def _case_row(case: TransferCase) -> tuple[str, ...]:
    workload = case.workload
    medians = [case.timings[method].median_s for method in METHODS]
    return (
        size_text(workload.block_bytes),
        size_text(workload.total_bytes),
        str(workload.block_count),
        *map(milliseconds, medians),
        *(rate_text(workload.total_bytes, seconds) for seconds in medians),
        f"{case.ratio(RAW_DEFAULT):.3f}",
        f"{case.ratio(RAW_TUNED):.3f}",
    )
