"""Several reads at once, one in each direction between the same two places."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvferry.bench.ceilings import Yardstick
from kvferry.bench.ferry_pair import FerryEngines
from kvferry.bench.workload import Workload
from kvferry.launch.concurrently import all_of
from kvferry.sdk.results import TransferResult


class YardsticksAtOnce:
    """A :class:`~kvferry.bench.ceilings.Yardstick` of several that read at the same time."""

    def __init__(self, directions: Sequence[Yardstick]) -> None:
        self._directions = directions

    async def read(self, workload: Workload) -> float:
        """Read a workload in every direction; seconds of the slowest."""
        return max(await all_of(one.read(workload) for one in self._directions))

    async def read_verified(self, workload: Workload, seed: int) -> None:
        """Read it into poisoned memory and compare, in one direction after the other. Raises TransportFailed."""
        for one in self._directions:
            await one.read_verified(workload, seed)


@dataclass(frozen=True, slots=True)
class PullRound:
    """Pulls that were started together: ``seconds`` until the last had ended, and how each ended."""

    seconds: float
    results: Sequence[TransferResult]

    def slowest(self, stage: str) -> float:
        """The longest of what a stage took, by its name in the results."""
        return max(float(getattr(result, stage)) for result in self.results)


class PullsAtOnce:
    """Pulls of the same workload by one pair of engines or more, each with its own two pools."""

    def __init__(self, directions: Sequence[FerryEngines]) -> None:
        self._directions = directions
        self._handles: list[bytes] = []

    async def publish(self, workload: Workload, seed: int) -> None:
        """Publish the workload at every source and compare every byte of a first pull. Raises TransportFailed."""
        self._handles = [await one.publish(workload) for one in self._directions]
        for one, handle in zip(self._directions, self._handles, strict=True):
            await one.pull_verified(handle, workload, seed)

    async def pull(self, blocks: list[int]) -> PullRound:
        """Pull what was published, everywhere at once."""
        started = time.perf_counter()
        pulls = [one.pull(handle, blocks) for one, handle in zip(self._directions, self._handles, strict=True)]
        # One by itself is awaited as it is: a task more would be part of what is timed.
        results = [await pulls[0]] if len(pulls) == 1 else await all_of(pulls)
        return PullRound(time.perf_counter() - started, results)

    async def release(self) -> None:
        """End the publications."""
        for one in self._directions:
            await one.release()
