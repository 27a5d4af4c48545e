"""``kvferry bench trace``."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing

from kvferry.bench.trace import TraceSettings, replay_trace
from kvferry.bench.trace_figures import TraceRow
from kvferry.cli.figures import milliseconds, size_text
from kvferry.cli.terminal import console, error_console, print_json, table
from kvferry.core.errors import ConfigInvalid

_PREFIX_PRESENT = {"both": (False, True), "no": (False,), "yes": (True,)}
_QUANTILES = ("p50", "p90", "p99")


def prefix_choice(text: str) -> tuple[bool, ...]:
    """Which replays ``--prefix-present`` asks for. Raises ConfigInvalid."""
    if text not in _PREFIX_PRESENT:
        raise ConfigInvalid.of_field("prefix_present", text, f"must be one of {', '.join(_PREFIX_PRESENT)}")
    return _PREFIX_PRESENT[text]


async def trace(settings: TraceSettings, *, json_output: bool) -> None:
    """Replay a trace and show what its pulls took; JSON rows as soon as they are measured."""
    rows: list[TraceRow] = []
    with error_console().status("") as status:
        async with aclosing(replay_trace(settings, status.update)) as replays:
            async for row in replays:
                rows.append(row)
                if json_output:
                    print_json(row.to_dict())
    if not json_output:
        _show(settings, rows)


def _show(settings: TraceSettings, rows: Sequence[TraceRow]) -> None:
    title = (
        f"{len(rows[0].requests)} requests at {settings.speed:g} times their speed, "
        f"{size_text(settings.token_bytes)} of KV a token, path {settings.path}, {settings.network}"
    )
    columns = ("prefixes", "took", "done", "verified", "bytes", "GB/s", "GB/s of a pull")
    quantiles = tuple(f"{what} {q} ms" for what in ("pull", "queue", "allocation") for q in _QUANTILES)
    lines = [_line(row) for row in rows]
    console().print(table(title, (*columns, *quantiles), lines, right=len(columns) + len(quantiles) - 2))
    for row in rows:
        for reason, count in row.failures.items():
            console().print(f"{count} failed: {reason}")


def _line(row: TraceRow) -> tuple[str, ...]:
    of_pulls = row.gbytes_per_s_of_pulls
    return (
        "present" if row.prefix_present else "read",
        "+".join(sorted({request.path for request in row.succeeded})),
        str(len(row.succeeded)),
        str(sum(request.verified for request in row.requests)),
        size_text(row.received_bytes),
        f"{row.gbytes_per_s:.2f}",
        f"{of_pulls['median']:.2f}" if of_pulls else "-",
        *_cells(row.quantiles_s(lambda request: request.pull_s)),
        *_cells(row.quantiles_s(lambda request: request.queue_s)),
        *_cells(row.quantiles_s(lambda request: request.allocation_wait_s)),
    )


def _cells(quantiles: Mapping[str, float]) -> list[str]:
    return [milliseconds(quantiles[name]) if quantiles else "-" for name in _QUANTILES]
