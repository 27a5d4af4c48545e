"""``python -m tests.chaos``: a chaos run from the command line."""

import argparse
import asyncio
import secrets
import sys
from pathlib import Path

from kvferry.core.errors import ConfigInvalid
from tests.chaos.run import Plan, chaos

SHORT_SECONDS = 80.0


def main() -> int:
    """Run, print, write; 1 if anything was found, 2 if the machine does not let us."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of faults and load (default: random, printed)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--short", action="store_true", help="one fault of each kind, each for some seconds")
    parser.add_argument("--json", type=Path, help="write everything here as well")
    parser.add_argument("--directory", type=Path, help="keep sockets and logs here; a short path")
    options = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    _tell(f"chaos: seed {seed}")
    plan = short_plan(seed, options.directory) if options.short else long_plan(seed, options.minutes, options.directory)
    try:
        report = asyncio.run(chaos(plan, _tell))
    except ConfigInvalid as error:
        sys.stderr.write(f"chaos: {error}\n")
        return 2
    report.show()
    report.write(options.json)
    return 1 if report.failures else 0


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def short_plan(seed: int, directory: Path | None = None) -> Plan:
    """Part of the test suite: two minutes with everything."""
    return Plan(seed, SHORT_SECONDS, hold_s=3.5, cancellations=500, short=True, directory=directory)


def long_plan(seed: int, minutes: float, directory: Path | None = None) -> Plan:
    """Past every time-out: an engine that is silent for ten seconds counts as lost."""
    return Plan(seed, minutes * 60 - 60, hold_s=12.0, cancellations=10_000, directory=directory)


if __name__ == "__main__":
    sys.exit(main())
