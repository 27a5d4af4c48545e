"""``python -m tests.chaos.soak``: load without faults; what grows, and whether it stays as quick as it was.

Ended transfers and publications are kept up to a bound (`limits.kept_*`), so memory of controls grows until that many
have been: the bound is low here, and slopes are taken over the second half of the run.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from kvferry.core.errors import ConfigInvalid
from tests.chaos.census import Holding, census, quiet
from tests.chaos.load import Load, Tally
from tests.chaos.probes import recovered
from tests.chaos.site import running_site

SAMPLES = 180
LIMITS = {"kept_transfers": 500, "kept_publications": 500}
PAUSE_S = 0.08
QUIET_TIMEOUT_S = 40.0
MIB = 1 << 20
SLOPES_MAX = {"resident_mib": 40.0, "descriptors": 12.0, "threads": 12.0}
"""Per hour: more is a leak. One descriptor or thread more in a half hour's run is none."""
PERCENTILES = (50, 90, 99)
SLOWER_MAX = 2.0
"""By which factor the median may differ between the first and the last third."""


@dataclass(frozen=True, slots=True)
class Slope:
    """How one process grew."""

    process: str
    resident_mib: float
    """At the end."""
    resident_mib_per_h: float
    descriptors_per_h: float
    threads_per_h: float


@dataclass(frozen=True, slots=True)
class Soak:
    """A whole run."""

    minutes: float
    slopes: list[Slope]
    first_ms: dict[str, float]
    """Percentiles of pulls in the first third of the time."""
    last_ms: dict[str, float]
    tally: Tally
    left: list[str]
    """What was under way or pinned when all should be quiet."""

    @property
    def failures(self) -> list[str]:
        """What must not be."""
        found = [f"not quiet: {left}" for left in self.left]
        if self.tally.wrong_bytes:
            found.append(f"wrong bytes: {self.tally.wrong_bytes}")
        for slope in self.slopes:
            rates = {
                "resident_mib": slope.resident_mib_per_h,
                "descriptors": slope.descriptors_per_h,
                "threads": slope.threads_per_h,
            }
            found += [
                f"{slope.process}: {what} grows by {rate:.1f} an hour"
                for what, rate in rates.items()
                if rate > SLOPES_MAX[what]
            ]
        if self.last_ms["p50"] > SLOWER_MAX * self.first_ms["p50"]:
            found.append(f"pulls became slower: {self.first_ms} ms, then {self.last_ms} ms")
        return found

    def to_json(self) -> str:
        """For machines."""
        values = {
            "minutes": self.minutes,
            "slopes": [asdict(slope) for slope in self.slopes],
            "first_third_ms": self.first_ms,
            "last_third_ms": self.last_ms,
            "started": self.tally.started,
            "succeeded": self.tally.succeeded,
            "failed": self.tally.failed,
            "cancelled": self.tally.cancelled,
            "wrong_bytes": self.tally.wrong_bytes,
            "failures": self.failures,
        }
        return json.dumps(values, indent=2)

    def show(self) -> None:
        """Print the tables."""
        console = Console()
        table = Table(
            "process",
            "MiB",
            "MiB/h",
            "descriptors/h",
            "threads/h",
            title=f"soak, {self.minutes:g} minutes, second half",
        )
        for slope in self.slopes:
            table.add_row(
                slope.process,
                f"{slope.resident_mib:.1f}",
                f"{slope.resident_mib_per_h:+.2f}",
                f"{slope.descriptors_per_h:+.2f}",
                f"{slope.threads_per_h:+.2f}",
            )
        console.print(table)
        console.print(f"pulls: {self.tally.succeeded} of {self.tally.started} succeeded, failed {self.tally.failed}")
        for name, figures in (("first third", self.first_ms), ("last third", self.last_ms)):
            console.print(f"{name}, ms: " + ", ".join(f"{key} {value:.1f}" for key, value in figures.items()))
        for failure in self.failures:
            console.print(f"FAILED: {failure}", markup=False)


async def soak(minutes: float, seed: int) -> Soak:
    """Run it.

    Raises:
        ConfigInvalid: the machine does not let us make network namespaces.
    """
    samples: list[tuple[float, dict[str, Holding]]] = []
    async with running_site(seed, limits=LIMITS) as site:
        await recovered(site, time.monotonic())
        load = Load(site, seed, pause_s=PAUSE_S, keep_seconds=True)
        running = site.tasks.create_task(load.run())
        began = time.monotonic()
        for number in range(1, SAMPLES + 1):
            await asyncio.sleep(max(began + number * minutes * 60 / SAMPLES - time.monotonic(), 0))
            samples.append((time.monotonic(), census(site)))
        load.stop()
        await running
        left = await quiet(site, QUIET_TIMEOUT_S) + site.crashes
    ended = samples[-1][0]
    third = (ended - began) / 3
    return Soak(
        minutes,
        [_slope(name, samples[SAMPLES // 2 :]) for name in samples[-1][1]],
        _percentiles([took for at, took in load.tally.seconds if at < began + third]),
        _percentiles([took for at, took in load.tally.seconds if at > ended - third]),
        load.tally,
        left,
    )


def _slope(process: str, samples: Sequence[tuple[float, dict[str, Holding]]]) -> Slope:
    hours = np.array([at for at, _ in samples]) / 3600.0
    held = [holdings[process] for _, holdings in samples]

    def per_hour(values: Sequence[float]) -> float:
        return float(np.polyfit(hours - hours[0], np.array(values, dtype=float), 1)[0])

    return Slope(
        process=process,
        resident_mib=held[-1].resident_bytes / MIB,
        resident_mib_per_h=per_hour([holding.resident_bytes / MIB for holding in held]),
        descriptors_per_h=per_hour([holding.descriptors for holding in held]),
        threads_per_h=per_hour([holding.threads for holding in held]),
    )


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": float(np.percentile(seconds, percent)) * 1e3 for percent in PERCENTILES}


def main() -> int:
    """Run, print, write; 1 if anything was found, 2 if the machine does not let us."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write everything here as well")
    options = parser.parse_args()
    try:
        result = asyncio.run(soak(options.minutes, options.seed))
    except ConfigInvalid as error:
        sys.stderr.write(f"soak: {error}\n")
        return 2
    result.show()
    if options.json is not None:
        options.json.write_text(result.to_json() + "\n", encoding="utf-8")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
