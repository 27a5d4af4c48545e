"""``kvferry bench checksums``."""

from kvferry.bench.checksums import COPY, PULL_OFF, measure_checksums
from kvferry.cli.bench import pool_device
from kvferry.cli.figures import milliseconds, parse_size, size_text
from kvferry.cli.terminal import console, error_console, print_json, table

_COLUMNS = ("method", "ms", "GB/s", "its time / the copy's", "its time / the plain pull's")


async def checksums(total: str, *, device: str, threads: int, repeats: int, json_output: bool) -> None:
    """Measure copies, digests and pulls in turns, and show them."""
    pools, total_bytes = pool_device(device), parse_size("total", total)
    with error_console().status("starting two workers") as status:
        done = 0

        def on_round() -> None:
            nonlocal done
            done += 1
            status.update(f"round {done}")

        result = await measure_checksums(pools, total_bytes, threads, repeats, on_round)
    if json_output:
        print_json(result.to_dict())
        return
    rows = [
        (
            name,
            milliseconds(timing.median_s),
            f"{total_bytes / timing.median_s / 1e9:.1f}",
            f"{timing.ratio_to(result.timings[COPY]):.2f}",
            f"{timing.ratio_to(result.timings[PULL_OFF]):.2f}",
        )
        for name, timing in result.timings.items()
    ]
    title = f"checksums of {size_text(total_bytes)}, medians of {repeats} rounds in turns, {threads} threads"
    console().print(table(title, _COLUMNS, rows, right=len(_COLUMNS) - 1))
