"""``python -m tests.simulation``: many seeds, or one seed with its trace."""

import argparse
import os
import sys
import time
from collections.abc import Iterable

from tests.simulation.many import outcomes
from tests.simulation.report import Report
from tests.simulation.run import simulate


def main() -> int:
    """Returns 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, action="append", help="run this seed; one alone is run with its trace")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seconds", type=float, help="begin no more seeds after so long")
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of strings are walked through in the order of their hashes: a seed has to mean the same run everywhere.
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {"PYTHONHASHSEED": "0"})  # noqa: S606 - this program
    if args.seed is not None and len(args.seed) == 1:
        return show(args.seed[0])
    return run_all(args.seed or range(args.first, args.first + args.seeds), args.jobs, args.seconds)


def show(seed: int) -> int:
    """Run one seed with its trace."""

    def write(line: str) -> None:
        sys.stdout.write(line + "\n")

    outcome = simulate(seed, write)
    report = Report()
    report.add(outcome)
    sys.stdout.write(report.text())
    return 1 if outcome.failure else 0


def run_all(seeds: Iterable[int], jobs: int, seconds: float | None) -> int:
    """Run many seeds, and say what came of them."""
    report, began, until = Report(), time.monotonic(), 0.0
    for outcome in outcomes(list(seeds), jobs):
        report.add(outcome)
        if outcome.failure:
            sys.stdout.write(f"seed {outcome.seed} failed: {outcome.failure}\n  make simulate SEED={outcome.seed}\n")
            sys.stdout.flush()
        # From the first outcome on: to start processes may take long where much else is going on.
        until = until or time.monotonic() + (seconds or float("inf"))
        if time.monotonic() > until:
            break
    sys.stdout.write(report.text(time.monotonic() - began))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
