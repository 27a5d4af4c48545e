"""Summaries of timed rounds."""

import math
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one method, round by round."""

    rounds_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle round."""
        return median(self.rounds_s)

    def quantile_s(self, part: float) -> float:
        """The round that ``part`` (0 to 1) of all are not slower than."""
        ordered = sorted(self.rounds_s)
        return ordered[max(0, math.ceil(part * len(ordered)) - 1)]

    def ratio_to(self, other: "Timing") -> float:
        """How much longer this takes: the ratio of the medians."""
        return self.median_s / other.median_s

    def rates(self, total_bytes: int) -> dict[str, float]:
        """GB/s of moving ``total_bytes`` in each round: median, min and max."""
        slowest, fastest = max(self.rounds_s), min(self.rounds_s)
        seconds = {"median": self.median_s, "min": slowest, "max": fastest}
        return {name: total_bytes / value / 1e9 for name, value in seconds.items()}
