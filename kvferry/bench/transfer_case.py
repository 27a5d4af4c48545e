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
class TransferRow:
    """A path in a case, and what it ran on."""

    case: PathCase
    workload: Workload
    device: str
    network: str
    unavailable: Mapping[str, str]
    """Methods that could not be measured, and why."""
    host: Mapping[str, object]

    def _device_figures(self) -> dict[str, object]:
        """The copy alone as the device's own clock saw it, where a device copied."""
        copied, total = self.case.stages[DEVICE], self.workload.total_bytes
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
        case, total = self.case, self.workload.total_bytes
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
            "device": self.device,
            "network": self.network,
            "order": self.workload.order,
            "block_bytes": self.workload.block_bytes,
            "pieces": case.piece_count,
            "total_bytes": total,
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
