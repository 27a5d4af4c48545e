"""Seeds of the simulation: those that failed once, new ones, and broken product code that must be noticed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation.breakages import BREAKAGES, Breakage, fence_off, no_deadline
from tests.simulation.conftest import SUMMARY
from tests.simulation.run import simulate

SEEDS = 200
SEEDS_MIN = 100
SEEDS_SECONDS = 420
"""A busy machine runs fewer of them, at least ``SEEDS_MIN``."""
BREAKAGE_SEEDS = 40
RUN_SECONDS = 560
FOUND_BY = {fence_off: 8, no_deadline: 116}
"""Seeds that found a breakage when this was written: tried first, to save time."""
FOUND = Path(__file__).parent / "seeds.txt"


def run(*arguments: str) -> str:
    """The output of a run that must not fail."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    done = subprocess.run(  # noqa: S603 - this very interpreter
        command,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stdout[-4000:] + done.stderr[-4000:], pytrace=False)
    return done.stdout


def found_seeds() -> list[str]:
    """The seeds that failed once."""
    lines = FOUND.read_text().splitlines()
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


def test_seeds_that_failed_once_pass() -> None:
    """No seed that ever found a defect finds one again."""
    run(*(argument for seed in found_seeds() for argument in ("--seed", seed)))


def test_new_seeds_pass(record_property: Callable[[str, object], None]) -> None:
    """Under all faults no invariant breaks, and transfers succeed; the run's last lines say how many seeds it did."""
    told = run("--first", "1000", "--seeds", str(SEEDS), "--seconds", str(SEEDS_SECONDS))
    found = re.match(r"seeds +(\d+), of which failed 0", told)
    assert found is not None
    record_property(SUMMARY, f"simulation: {found[1]} new seeds and {len(found_seeds())} that failed once")
    assert SEEDS_MIN <= int(found[1])
    assert "SUCCEEDED" in told


def test_a_seed_is_the_same_run_again() -> None:
    """A seed gives the same trace, line by line, in another process."""
    assert run("--seed", "1003") == run("--seed", "1003")


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_broken_code_is_noticed(breakage: Breakage) -> None:
    """Some seed finds each of the ways in which the product is broken here."""
    with breakage():
        assert any(simulate(seed).failure for seed in (FOUND_BY.get(breakage, 0), *range(BREAKAGE_SEEDS)))
