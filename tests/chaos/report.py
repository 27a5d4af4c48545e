"""What a chaos run found, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.load import LATE_BOUND_S, Tally

RECOVERY_BOUND_S = 10.0


@dataclass(frozen=True, slots=True)
class Injected:
    """One fault that happened."""

    name: str
    kind: str
    at_s: float
    """Since the run began."""
    lasted_s: float
    """From its beginning until nothing stood in the way any more."""
    recovery_s: float
    """From then until every pair had pulled again; infinite if one did not."""
    slowest_pair: str
    failed: dict[str, int]
    """Pulls that failed while it lasted, by reason."""


@dataclass
class Report:
    """A whole run."""

    seed: int
    seconds: float = 0.0
    faults: list[Injected] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    late: list[dict[str, Any]] = field(default_factory=list)
    """Bytes that came after their transfer's end, as the engines logged it."""
    leaks: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    """Processes that ended by themselves."""
    backend_aborts: list[str] = field(default_factory=list)
    """Data planes that UCX ended, as it does over tcp when a request is left of a reader that was killed. Their peers
    see a killed data plane, which is a fault like the others."""
    log_defects: list[str] = field(default_factory=list)
    """Tracebacks in the logs of processes."""

    @property
    def late_bytes(self) -> int:
        """How many came."""
        return sum(late["late_bytes"] for late in self.late)

    @property
    def recovery_max_s(self) -> float:
        """The longest recovery."""
        return max((fault.recovery_s for fault in self.faults), default=0.0)

    @property
    def failures(self) -> list[str]:
        """What must not be; empty when the run is good."""
        tally = self.tally
        found = [f"wrong bytes: {tally.wrong_bytes}, for example {tally.wrong[0]}"] if tally.wrong_bytes else []
        if self.late:
            found.append(f"bytes that came after their transfer's end: {self.late_bytes}, for example {self.late[0]}")
        if tally.started != tally.ended:
            found.append(f"transfers that never ended: {tally.started - tally.ended}")
        found += [f"past its deadline: {late}" for late in tally.late]
        found += [
            f"recovery after {fault.name} took {fault.recovery_s:.1f} s ({fault.slowest_pair})"
            for fault in self.faults
            if fault.recovery_s > RECOVERY_BOUND_S
        ]
        found += [f"leak: {leak}" for leak in self.leaks]
        found += [f"crash: {crash}" for crash in self.crashes]
        found += [f"defect in a log: {defect}" for defect in self.log_defects]
        if not tally.succeeded:
            found.append("no pull succeeded")
        return found

    def to_json(self) -> str:
        """Everything, for machines."""
        names = [known.name for known in fields(Tally) if known.name != "seconds"]
        values = {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "transfers": {name: getattr(self.tally, name) for name in names},
            "late_bytes": self.late_bytes,
            "faults": [asdict(fault) for fault in self.faults],
            "faults_by_kind": self._by_kind(),
            "recovery_max_s": self.recovery_max_s,
            "leaks": self.leaks,
            "crashes": self.crashes,
            "backend_aborts": self.backend_aborts,
            "log_defects": self.log_defects,
            "failures": self.failures,
        }
        return json.dumps(values, indent=2)

    def write(self, path: Path | None) -> None:
        """Write the JSON, if somebody wants it."""
        if path is not None:
            path.write_text(self.to_json() + "\n", encoding="utf-8")

    def show(self) -> None:
        """Print the tables."""
        console = Console()
        tally = self.tally
        faults = Table("fault", "times", "longest recovery, s", title=f"chaos, seed {self.seed}, {self.seconds:.0f} s")
        for kind, times in sorted(self._by_kind().items()):
            slowest = max(fault.recovery_s for fault in self.faults if fault.kind == kind)
            faults.add_row(kind, str(times), f"{slowest:.2f}")
        console.print(faults)
        found = Table("what", "figure")
        found.add_row("transfers started", str(tally.started))
        found.add_row("succeeded", f"{tally.succeeded} ({_counts(tally.by_path)})")
        found.add_row("failed", f"{tally.failed.total()} ({_counts(tally.failed)})")
        found.add_row("cancelled", str(tally.cancelled))
        found.add_row("not begun by their engine", f"{tally.refused.total()} ({_counts(tally.refused)})")
        found.add_row("lost with their engine", str(tally.lost))
        found.add_row("ended with blocks kept back", str(tally.unsettled))
        found.add_row("publications", f"{tally.published}, refused {_counts(tally.publish_failed) or 0}")
        found.add_row("wrong bytes", str(tally.wrong_bytes))
        found.add_row("late bytes", str(self.late_bytes))
        found.add_row(
            "longest past a deadline, s",
            f"{tally.late_max_s:.3f} (bound {LATE_BOUND_S:g}; {tally.excluded} pulls of frozen engines left out)",
        )
        found.add_row("longest recovery, s", f"{self.recovery_max_s:.2f} (bound {RECOVERY_BOUND_S:g})")
        found.add_row("leaks", str(len(self.leaks)))
        found.add_row("data planes that UCX aborted", str(len(self.backend_aborts)))
        console.print(found)
        for failure in self.failures:
            console.print(f"FAILED: {failure}", markup=False)

    def _by_kind(self) -> dict[str, int]:
        kinds: dict[str, int] = {}
        for fault in self.faults:
            kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
        return kinds


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
