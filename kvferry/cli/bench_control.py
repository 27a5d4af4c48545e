"""``kvferry bench control``."""

from kvferry.bench.control import ControlResult, ControlSettings, measure_control
from kvferry.cli.bench import pool_device
from kvferry.cli.figures import milliseconds, parse_size, size_text
from kvferry.cli.terminal import console, error_console, print_json, table


async def control(size: str, block: str, *, device: str, in_flight: int, seconds: float, json_output: bool) -> None:
    """Measure pulls at once, round trips and idle processes, and show them."""
    settings = ControlSettings(
        device=pool_device(device),
        in_flight=in_flight,
        total_bytes=parse_size("size", size),
        block_bytes=parse_size("block", block),
        seconds=seconds,
    )
    with error_console().status("") as status:
        result = await measure_control(settings, status.update)
    if json_output:
        for row in result.to_rows():
            print_json(row)
    else:
        _show(result)


def _show(result: ControlResult) -> None:
    settings = result.settings
    rows = [
        (
            str(rate.in_flight),
            f"{rate.pulls_per_s:.0f}",
            milliseconds(rate.timing.quantile_s(0.5)),
            milliseconds(rate.timing.quantile_s(0.99)),
            rate.bound,
        )
        for rate in result.rates
    ]
    title = f"pulls of {size_text(settings.total_bytes)} in blocks of {size_text(settings.block_bytes)}"
    console().print(table(title, ("in flight", "pulls/s", "p50 ms", "p99 ms", "bound by"), rows, right=4))
    columns = (
        "process",
        *(f"CPU ms per pull, {rate.in_flight} in flight" for rate in result.rates),
        "idle, % of a core",
    )
    processes = [
        (
            name,
            *(milliseconds(rate.cpu.used_s[name] / len(rate.timing.rounds_s)) for rate in result.rates),
            f"{100 * result.idle.share_of_core(name):.2f}",
        )
        for name in result.idle.used_s
    ]
    console().print(table("processes", columns, processes, right=len(columns) - 1))
    trips = [
        (name, milliseconds(timing.quantile_s(0.5)), milliseconds(timing.quantile_s(0.99)))
        for name, timing in result.round_trips.items()
    ]
    console().print(table("one exchange with a control", ("call", "p50 ms", "p99 ms"), trips, right=2))
