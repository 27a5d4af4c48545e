"""``kvferry demo``."""

import sys
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvferry.cli.figures import milliseconds, rate_text
from kvferry.cli.running import EXIT_FAILED
from kvferry.cli.terminal import console, error_console, print_json, table
from kvferry.cli.transports import WorkerFlags
from kvferry.core.errors import InvalidArgument
from kvferry.demo.report import DemoReport
from kvferry.demo.router import Served
from kvferry.demo.run import run_demo
from kvferry.demo.settings import DemoSettings, WorkerShape, config_error
from kvferry.reference_engine.paged_kv import blocks_needed
from kvferry.reference_engine.variants import model_variant

_COLUMNS = (
    "request",
    "path",
    "tokens",
    "blocks",
    "MiB",
    "descr-\niptors",
    "queue\nms",
    "nego-\ntiate\nms",
    "read\nms",
    "verify\nms",
    "GB/s",
)


class LiveProgress:
    """Shows the demo as it runs, on standard error."""

    def __init__(self, out: Console, request_count: int) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), console=out)
        self._task = self._progress.add_task("", total=request_count)
        self._out = out
        self._live = Live(Group(self._progress), console=out, transient=True, refresh_per_second=8)

    def __enter__(self) -> "LiveProgress":
        if self._out.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def stage(self, text: str) -> None:
        """Something new begins."""
        self._progress.update(self._task, description=text)
        if not self._out.is_terminal:
            self._out.print(f"kvferry: {text}")

    def served(self, one: Served) -> None:
        """A request is done."""
        self._progress.advance(self._task)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The command line."""

    device: str
    requests: int
    concurrency: int
    directory: Path | None
    prefill: WorkerShape
    decode: WorkerShape
    layers: int
    kv_heads: int | None
    kv_dtype: str
    mla: bool
    window: int
    flags: WorkerFlags

    def settings(self) -> DemoSettings:
        """As the demo takes it. Raises ConfigInvalid."""
        try:
            model = model_variant(
                layers=self.layers,
                kv_heads=self.kv_heads,
                mla=self.mla,
                window=self.window,
                kv_dtype=self.kv_dtype,
            )
        except InvalidArgument as error:
            raise config_error(error) from error
        return DemoSettings(
            self.device,
            self.requests,
            self.concurrency,
            self.directory,
            model,
            self.prefill,
            self.decode,
            self.flags.data_plane,
            self.flags.control,
        )


async def demo(options: DemoOptions, *, json_output: bool) -> None:
    """Run the demo and show its report. Exit status 1 if anything differs."""
    settings = options.settings()
    with LiveProgress(error_console(), settings.request_count) as progress:
        report = await run_demo(settings, progress)
    if json_output:
        print_json(report.to_dict())
    else:
        _show(report, settings.decode.block_tokens)
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


def _show(report: DemoReport, block_tokens: int) -> None:
    out = console()
    out.print(_transfers_table(report.served, block_tokens))
    out.print(_verdict_table(report))
    sys.stdout.flush()


def _transfers_table(served: tuple[Served, ...], block_tokens: int) -> Table:
    rows = [_row(one, block_tokens) for one in sorted(served, key=lambda one: one.request.request_id)]
    made = table("transfers", _COLUMNS, rows, right=9)
    made.add_section()
    made.add_row(*_total_row(served, block_tokens), style="bold")
    return made


def _total_row(served: tuple[Served, ...], block_tokens: int) -> tuple[str, ...]:
    transfers = [one.transfer for one in served]
    pulled = sum(transfer.received_bytes for transfer in transfers)
    reading = sum(transfer.read_s for transfer in transfers)
    tokens = [len(one.request.prompt_tokens) for one in served]
    return (
        "total",
        "",
        str(sum(tokens)),
        str(sum(blocks_needed(count, block_tokens) for count in tokens)),
        _mebibytes(pulled),
        str(sum(transfer.descriptor_count for transfer in transfers)),
        milliseconds(sum(transfer.queue_s for transfer in transfers)),
        milliseconds(sum(transfer.negotiate_s for transfer in transfers)),
        milliseconds(reading),
        milliseconds(sum(transfer.verify_s for transfer in transfers)),
        rate_text(pulled, reading),
    )


def _row(one: Served, block_tokens: int) -> tuple[str, ...]:
    transfer, tokens = one.transfer, len(one.request.prompt_tokens)
    stages = (transfer.queue_s, transfer.negotiate_s, transfer.read_s, transfer.verify_s)
    return (
        one.request.request_id,
        f"{transfer.path}/{transfer.backend}".lower(),
        str(tokens),
        str(blocks_needed(tokens, block_tokens)),
        _mebibytes(transfer.received_bytes),
        str(transfer.descriptor_count),
        *map(milliseconds, stages),
        rate_text(transfer.received_bytes, transfer.read_s),
    )


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.3f}"


def _verdict_table(report: DemoReport) -> Table:
    pulled, expected = report.bytes_pulled, report.bytes_expected
    requests = len(report.served)
    rows = [
        (
            _mark(report.tokens_equal),
            "tokens equal to the single-process run",
            f"{requests - len(report.wrong_tokens)} of {requests} requests",
        ),
        (_mark(pulled == expected), "bytes pulled equal to the arithmetic", f"{pulled:,} of {expected:,}"),
        (_mark(not report.leaked_leases), "leases returned", f"{report.leaked_leases} held"),
        (_mark(not report.leaked_blocks), "blocks returned", f"{report.leaked_blocks} held"),
        ("", "paths", ", ".join(f"{path}: {count}" for path, count in sorted(report.paths.items()))),
        ("", "time", f"{report.serving_s:.1f} s serving, {report.total_s:.1f} s in all"),
    ]
    title = "[green]all as it should be" if report.ok else "[red]something differs"
    return table(title, ("", "verdict", ""), rows)


def _mark(good: bool) -> str:
    return "[green]yes" if good else "[red]NO"
