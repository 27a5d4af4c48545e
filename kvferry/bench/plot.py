"""A picture of ``bench transfer``: GB/s over block size, a line for each path, baseline and ceiling."""

import importlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvferry.bench.transfer_case import CEILING_PREFIX, TransferRow
from kvferry.core.errors import ConfigInvalid

_KIB = 1 << 10
_MIB = 1 << 20

Points = Mapping[str, Sequence[tuple[int, float]]]


def require_matplotlib() -> Any:
    """The plotting library.

    Raises:
        ConfigInvalid: it is not installed; names the extra that brings it.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ConfigInvalid.of_field("plot", "matplotlib", "not installed: pip install 'kvferry[plot]'") from error
    # Without a display, and without the user's own settings.
    matplotlib.use("agg")
    return importlib.import_module("matplotlib.pyplot")


def points_of(rows: Sequence[TransferRow]) -> Points:
    """Median GB/s by block size (bytes) of every line; where an order differs, the line's name tells it."""
    orders = {row.workload.order for row in rows}
    points: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        suffix = f", {row.workload.order}" if len(orders) > 1 else ""
        timings = {f"kvferry {row.case.label}": row.case.timing, **row.case.others}
        for name, timing in timings.items():
            rate = timing.rates(row.moved_bytes)["median"]
            points[name + suffix][row.workload.block_bytes] = rate
    return {name: sorted(rates.items()) for name, rates in points.items()}


def draw(rows: Sequence[TransferRow], path: Path) -> None:
    """Write the picture; its format follows from the name of the file.

    Raises:
        ConfigInvalid: there is no plotting library, or the file cannot be written.
    """
    pyplot = require_matplotlib()
    points, first = points_of(rows), rows[0]
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    for name, line in points.items():
        axes.plot(*zip(*line, strict=True), label=name.replace("_", " "), **_style(name))
    sizes = sorted({row.workload.block_bytes for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [size_label(size) for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(pyplot.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.set_xlabel("block size")
    axes.set_ylabel("GB/s (median)")
    axes.grid(visible=True, alpha=0.3)
    total, where = size_label(first.workload.total_bytes), f"{first.place.devices} pools"
    axes.set_title(f"Pull of {total}, {where}, {first.place.network}, {len(first.case.timing.rounds_s)} rounds")
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigInvalid.of_field("plot", str(path), f"cannot be written: {error}") from error
    finally:
        pyplot.close(figure)


def size_label(size_bytes: int) -> str:
    """A size for an axis: ``4 KiB``, ``1 MiB``."""
    if size_bytes >= _MIB:
        return f"{size_bytes / _MIB:g} MiB"
    return f"{size_bytes / _KIB:g} KiB"


def _style(name: str) -> dict[str, object]:
    if name.startswith("kvferry"):
        return {"marker": "o", "linewidth": 2}
    if name.startswith(CEILING_PREFIX):
        return {"linestyle": "--", "color": "black" if "copy" in name else "grey"}
    return {"marker": "x", "linestyle": ":"}
