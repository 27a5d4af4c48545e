"""What commands write: JSON for programs, tables for people; colours on terminals only."""

import json
import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_COLUMNS = 200
"""Width of tables that do not go to a terminal, so that nothing is cut off."""


def print_json(value: object) -> None:
    """One JSON object on one line, out at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def console() -> Console:
    """Standard output for people."""
    return _console(Console(highlight=False))


def error_console() -> Console:
    """Standard error for people: progress and remarks."""
    return _console(Console(stderr=True, highlight=False))


def _console(made: Console) -> Console:
    if not made.is_terminal:
        made.width = PIPE_COLUMNS
    return made


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> Table:
    """A table whose last ``right`` columns are numbers, aligned to the right."""
    # Without lines between columns, so that the widest table still fits a terminal of 80.
    made = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=0)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index >= len(columns) - right else "left")
    for row in rows:
        made.add_row(*row)
    return made
