"""``kvferry bench plan``."""

from kvferry.bench.plan import PlanFigures, measure_plan, plan_cases
from kvferry.cli.figures import milliseconds, size_text
from kvferry.cli.terminal import console, error_console, print_json, table

_COLUMNS = ("case", "cold ms", "cached ms", "rows", "pieces", "bytes", "mean piece", "memory / arrays")


async def plan(tokens: int, *, repeats: int, json_output: bool) -> None:
    """Measure planning and show every case."""
    figures: list[PlanFigures] = []
    with error_console().status("") as status:
        for case in plan_cases(tokens):
            status.update(case.name)
            figures.append(measure_plan(case, repeats))
    if json_output:
        print_json({"tokens": tokens, "repeats": repeats, "cases": [measured.to_dict() for measured in figures]})
        return
    title = f"the plan for one destination rank, {tokens:,} tokens, medians of {repeats} rounds"
    console().print(table(title, _COLUMNS, [_row(measured) for measured in figures], right=len(_COLUMNS) - 1))


def _row(measured: PlanFigures) -> tuple[str, ...]:
    return (
        measured.case.name,
        milliseconds(measured.cold.median_s),
        milliseconds(measured.cached.median_s),
        f"{measured.row_count:,}",
        f"{measured.piece_count:,}",
        size_text(measured.total_bytes),
        size_text(round(measured.total_bytes / max(measured.piece_count, 1))),
        f"{measured.peak_bytes / max(measured.array_bytes, 1):.2f}",
    )
