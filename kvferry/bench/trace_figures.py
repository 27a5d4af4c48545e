"""Figures of ``bench trace``: what every request took, and summaries of many."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvferry.bench.figures import Timing

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """One request; times in seconds."""

    token_count: int
    present_tokens: int
    """Leading tokens that were not read."""
    admission_wait_s: float
    """From its arrival until it was among those in flight."""
    allocation_wait_s: float
    """Until it had its blocks, on both sides."""
    publish_s: float
    pull_s: float
    """From the engine's call to its completion."""
    queue_s: float
    """Of the pull: in the data plane, before its turn."""
    read_s: float
    received_bytes: int
    path: str
    verified: bool
    failure: str = ""
    """The reason; empty if it succeeded."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A whole replay."""

    prefix_present: bool
    settings: Mapping[str, object]
    requests: Sequence[RequestFigures]
    wall_s: float
    """From the first arrival to the last completion."""
    host: Mapping[str, object]

    @property
    def succeeded(self) -> list[RequestFigures]:
        """Those that arrived."""
        return [request for request in self.requests if not request.failure]

    @property
    def failures(self) -> dict[str, int]:
        """How many failed, by reason."""
        return dict(Counter(request.failure for request in self.requests if request.failure))

    def quantiles_s(self, figure: Callable[[RequestFigures], float]) -> dict[str, float]:
        """Of one figure over all that succeeded; empty if none did."""
        values = tuple(figure(request) for request in self.succeeded)
        return {name: Timing(values).quantile_s(part) for name, part in QUANTILES.items()} if values else {}

    @property
    def received_bytes(self) -> int:
        """Of all that succeeded."""
        return sum(request.received_bytes for request in self.succeeded)

    @property
    def gbytes_per_s(self) -> float:
        """Bytes of all requests over the whole time, which arrivals may bound."""
        return self.received_bytes / self.wall_s / 1e9

    @property
    def gbytes_per_s_of_pulls(self) -> dict[str, float]:
        """Of single pulls: bytes over the time of the pull. Pulls without bytes do not count."""
        rates = sorted(r.received_bytes / r.pull_s / 1e9 for r in self.succeeded if r.received_bytes)
        if not rates:
            return {}
        return {"median": rates[(len(rates) - 1) // 2], "min": rates[0], "max": rates[-1]}

    def to_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return {
            "bench": "trace",
            **self.settings,
            "prefix_present": self.prefix_present,
            "paths_taken": dict(Counter(request.path for request in self.succeeded)),
            "requests": len(self.requests),
            "succeeded": len(self.succeeded),
            "verified": sum(request.verified for request in self.requests),
            "failures": self.failures,
            "tokens": sum(request.token_count for request in self.requests),
            "tokens_present": sum(request.present_tokens for request in self.requests),
            "total_bytes": self.received_bytes,
            "wall_s": self.wall_s,
            "gbytes_per_s": self.gbytes_per_s,
            "gbytes_per_s_of_pulls": self.gbytes_per_s_of_pulls,
            "pull_s": self.quantiles_s(lambda request: request.pull_s),
            "queue_s": self.quantiles_s(lambda request: request.queue_s),
            "read_s": self.quantiles_s(lambda request: request.read_s),
            "publish_s": self.quantiles_s(lambda request: request.publish_s),
            "allocation_wait_s": self.quantiles_s(lambda request: request.allocation_wait_s),
            "admission_wait_s": self.quantiles_s(lambda request: request.admission_wait_s),
            "host": dict(self.host),
        }
