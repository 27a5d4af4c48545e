"""What probes have found out about the ways to a peer. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kvferry_dataplane.attestation.plans import LARGE, SMALL
from kvferry_dataplane.attestation.rate_watch import ProbeTimes, is_degraded, probe_times
from kvferry_dataplane.paths import Path
from kvferry_dataplane.transports.transport import TransportUse


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long the reads of a probe took, the quickest of several each."""

    latency: float
    large: float
    small: float

    @property
    def times(self) -> ProbeTimes:
        """What they say that reads cost."""
        large, small = int(LARGE.order.size), int(SMALL.order.size)
        return probe_times(self.latency, (large, self.large), (small, self.small), LARGE.total_bytes)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to a peer."""

    path: Path
    backend: str
    use: TransportUse
    seconds: Seconds
    best_gbytes_per_s: float = 0.0
    """The highest rate that it was ever attested with."""
    degraded: bool = False
    """Whether less than half of that is left."""

    @property
    def gbytes_per_s(self) -> float:
        """The rate of large pieces."""
        return LARGE.total_bytes / self.seconds.large / 1e9

    @property
    def small_gbytes_per_s(self) -> float:
        """The rate of small pieces."""
        return SMALL.total_bytes / self.seconds.small / 1e9

    def after(self, known: "Way | None") -> "Way":
        """This way, as it stands now that it was known before."""
        if known is None:
            return replace(self, best_gbytes_per_s=self.gbytes_per_s)
        best = max(known.best_gbytes_per_s, self.gbytes_per_s)
        degraded = is_degraded(best, self.gbytes_per_s, was_degraded=known.degraded)
        return replace(self, best_gbytes_per_s=best, degraded=degraded)


@dataclass(frozen=True, slots=True)
class Attestation:
    """The ways that reads of a peer may take, and why some of them could not be attested."""

    ways: tuple[Way, ...] = ()
    refusals: tuple[str, ...] = ()
    known: dict[tuple[Path, str], Way] = field(default_factory=dict, repr=False, compare=False)
    """The ways of all attestations so far, as they were last found."""

    def then(self, ways: Sequence[Way], refusals: Sequence[str]) -> "Attestation":
        """What holds after another probe."""
        found = [way.after(self.known.get((way.path, way.backend))) for way in ways]
        known = {**self.known, **{(way.path, way.backend): way for way in found}}
        return Attestation(tuple(found), tuple(refusals), known)
