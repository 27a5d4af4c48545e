"""Many runs, on several processes."""

import gc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.simulation.run import Outcome, simulate

ALONE_SEEDS_MAX = 8
"""So few are not worth starting processes for."""


def outcomes(seeds: list[int], jobs: int) -> Iterator[Outcome]:
    """The outcomes, in the order of the seeds."""
    if jobs == 1 or len(seeds) <= ALONE_SEEDS_MAX:
        prepare()
        yield from map(simulate, seeds)
        return
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), prepare)
    try:
        yield from pool.map(simulate, seeds)
    finally:
        # Who wants no more need not wait for what was not begun.
        pool.shutdown(cancel_futures=True)


def prepare() -> None:
    """What was imported need not be looked at after every run."""
    gc.collect()
    gc.freeze()
