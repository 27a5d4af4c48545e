"""What many runs came to, for people."""

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.run import Outcome


@dataclass
class Report:
    """Sums over runs."""

    seeds: int = 0
    steps: int = 0
    messages: int = 0
    virtual_seconds: float = 0.0
    rollovers: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    transfers: Counter[str] = field(default_factory=Counter)
    publications: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count a run."""
        self.seeds += 1
        self.steps += outcome.steps
        self.messages += outcome.messages
        self.virtual_seconds += outcome.virtual_seconds
        self.rollovers += outcome.rollovers
        self.faults += outcome.faults
        self.transfers += outcome.transfers
        self.publications += outcome.publications
        if outcome.failure:
            self.failed.append(outcome)

    def text(self, seconds: float | None = None) -> str:
        """The summary. ``seconds`` is how long it took."""
        lines = [f"seeds         {self.seeds}, of which failed {len(self.failed)}"]
        if seconds:
            lines.append(
                f"speed         {self.seeds / seconds:.1f} seeds/s, "
                f"{self.virtual_seconds / seconds:.0f} times as fast as real time"
            )
        lines += [
            f"steps         {self.steps}, messages {self.messages}, virtual seconds {self.virtual_seconds:.0f}",
            f"faults        {_counts(self.faults)}",
            f"publications  {_counts(self.publications)}",
            f"transfers     {_counts(self.transfers)}",
            f"rollovers     {self.rollovers}",
        ]
        lines += [f"failed        seed {outcome.seed}: {outcome.failure}" for outcome in self.failed]
        return "\n".join(lines) + "\n"


def _counts(counts: Counter[str]) -> str:
    return f"{counts.total()}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common())
