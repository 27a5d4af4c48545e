"""Figures of ``bench transfer``: one path in one case, beside all that it was measured with."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvferry.bench.figures import Timing
from kvferry.bench.workload import Workload

STAGES = ("negotiate_s", "queue_s", "read_s", "verify_s", "total_s", "device_s")
DEVICE = "device_s"
READ = "read_s"
CEILING_PREFIX = "ceiling_"


@dataclass(frozen=True, slots=True)
class PathCase:
    """Rounds of one path, and of the other methods in the same rounds."""

    path: str
    """As it was asked for."""
    sm_count: str
    label: str
    """Tells it from the others of the run."""
    path_taken: str
    choice: str
    piece_count: int
    timing: Timing
    """From the engine's call to its completion."""
    stages: Mapping[str, Timing]
    """kvferry's own figures by stage."""
    others: Mapping[str, Timing]

    def ratio_to(self, method: str) -> float:
        """Rate of this path over that of ``method``: the ratio of the medians."""
        return self.others[method].ratio_to(self.timing)


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes went from and to."""

    device: str
    source_device: str
    network: str
    directions: int = 1
    """2 if as much went the other way at the same time."""

    @property
    def devices(self) -> str:
        """Both, or the one that both pools lie on."""
        if self.device == self.source_device:
            return self.device
        return f"{self.source_device} {'to' if self.directions == 1 else 'from and to'} {self.device}"


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A path in a case, and what it ran on."""

    case: PathCase
    workload: Workload
    place: Place
    unavailable: Mapping[str, str]
    """Methods that could not be measured, and why."""
    host: Mapping[str, object]

    @property
    def moved_bytes(self) -> int:
        """Of all pulls of a round together."""
        return self.place.directions * self.workload.total_bytes

    def _device_figures(self) -> dict[str, object]:
        """The copy alone as the device's own clock saw it, where a device copied."""
        copied, total = self.case.stages[DEVICE], self.moved_bytes
        if not min(copied.rounds_s):
            return {}
        ceilings = {
            f"device_ratio_to_{method}": timing.median_s / copied.median_s
            for method, timing in self.case.others.items()
            if method.startswith(CEILING_PREFIX)
        }
        return {"device_gbytes_per_s": copied.rates(total), **ceilings}

    def to_dict(self) -> dict[str, object]:
        """The row for JSON."""
        case, total, place = self.case, self.moved_bytes, self.place
        rates = {
            method: {"gbytes_per_s": timing.rates(total), "ratio": case.ratio_to(method)}
            for method, timing in case.others.items()
        }
        ceilings = {method: figures for method, figures in rates.items() if method.startswith(CEILING_PREFIX)}
        return {
            "bench": "transfer",
            "path": case.path,
            "path_taken": case.path_taken,
            "choice": case.choice,
            "device": place.device,
            "source_device": place.source_device,
            "directions": place.directions,
            "sm_count": case.sm_count,
            "network": place.network,
            "order": self.workload.order,
            "block_bytes": self.workload.block_bytes,
            "pieces": case.piece_count,
            "total_bytes": self.workload.total_bytes,
            "rounds": len(case.timing.rounds_s),
            "gbytes_per_s": case.timing.rates(total),
            "read_gbytes_per_s": case.stages[READ].rates(total),
            **self._device_figures(),
            "stages_median_s": {stage: timing.median_s for stage, timing in case.stages.items()},
            "baselines": {method: figures for method, figures in rates.items() if method not in ceilings},
            "ceilings": ceilings,
            **{f"ratio_to_{method}": case.ratio_to(method) for method in case.others},
            "unavailable": dict(self.unavailable),
            "host": dict(self.host),
        }
