"""Many runs, on several processes."""

import gc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.simulation.run import Outcome, simulate

CHUNK_SEEDS = 4


def outcomes(seeds: list[int], jobs: int) -> Iterator[Outcome]:
    """The outcomes, in the order of the seeds."""
    if jobs == 1 or len(seeds) <= CHUNK_SEEDS:
        prepare()
        yield from map(simulate, seeds)
        return
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), prepare)
    try:
        yield from pool.map(simulate, seeds, chunksize=CHUNK_SEEDS)
    finally:
        # Who wants no more need not wait for what was not begun.
        pool.shutdown(cancel_futures=True)


def prepare() -> None:
    """What was imported need not be looked at after every run."""
    gc.collect()
    gc.freeze()
