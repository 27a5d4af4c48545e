"""``kvferry bench transfer``."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from kvferry.bench.plot import draw, require_matplotlib
from kvferry.bench.transfer import measure_transfers
from kvferry.bench.transfer_case import READ, TransferRow
from kvferry.bench.transfer_settings import TransferSettings
from kvferry.cli.bench import pool_device
from kvferry.cli.figures import milliseconds, parse_size, rate_text, size_text
from kvferry.cli.terminal import console, error_console, print_json, table


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """The command line, as it was typed."""

    paths: str
    device: str
    source_device: str
    both_ways: bool
    blocks: str
    total: str
    order: str
    repeats: int
    threads: int
    network: str
    sm_count: str
    plot: Path | None

    def settings(self) -> TransferSettings:
        """What they mean. Raises ConfigInvalid."""
        return TransferSettings(
            paths=_list(self.paths),
            device=pool_device(self.device),
            source_device=pool_device(self.source_device, field="source_device") if self.source_device else "",
            both_ways=self.both_ways,
            block_sizes=tuple(parse_size("blocks", text) for text in self.blocks.split(",")),
            total_bytes=parse_size("total", self.total),
            orders=_list(self.order),
            repeats=self.repeats,
            threads=self.threads,
            network=self.network,
            sm_counts=_list(self.sm_count),
        )


async def transfer(options: TransferOptions, *, json_output: bool) -> None:
    """Measure pulls and show every case; JSON rows as soon as they are measured."""
    if options.plot is not None:
        require_matplotlib()
    rows: list[TransferRow] = []
    with error_console().status("") as status:
        async with aclosing(measure_transfers(options.settings(), status.update)) as cases:
            async for measured in cases:
                rows += measured
                if json_output:
                    for row in measured:
                        print_json(row.to_dict())
    if not json_output:
        _show(rows)
    if options.plot is not None:
        draw(rows, options.plot)


def _show(rows: Sequence[TransferRow]) -> None:
    first = rows[0]
    total = first.workload.total_bytes
    methods = list(first.case.others)
    columns = ("block", "order", "path", "took", "pieces", "ms", "GB/s", "read GB/s")
    lines = [
        (
            size_text(row.workload.block_bytes),
            row.workload.order,
            row.case.label,
            row.case.path_taken,
            str(row.case.piece_count),
            milliseconds(row.case.timing.median_s),
            rate_text(row.moved_bytes, row.case.timing.median_s),
            rate_text(row.moved_bytes, row.case.stages[READ].median_s),
            *(_against(row, method) for method in methods),
        )
        for row in rows
    ]
    title = (
        f"a pull of {size_text(total)}, {first.place.devices}, {first.place.network}: medians of "
        f"{len(first.case.timing.rounds_s)} rounds in turns; of the others GB/s, and how many times that a pull is"
    )
    console().print(table(title, (*columns, *methods), lines, right=4 + len(methods)))
    for method, reason in first.unavailable.items():
        console().print(f"{method}: not measured: {reason}")


def _against(row: TransferRow, method: str) -> str:
    rate = rate_text(row.moved_bytes, row.case.others[method].median_s)
    return f"{rate} ({row.case.ratio_to(method):.2f})"


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))
