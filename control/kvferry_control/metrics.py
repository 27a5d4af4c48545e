"""What control counts, for Prometheus. One observation per transfer or publication, none per block."""

from collections.abc import Iterable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from kvferry.core.errors import KvferryError
from kvferry.core.reasons import Reason
from kvferry.worker.v1.worker_pb2 import AttestedSource
from kvferry_control.peers.attested import way_facts

STAGES = ("negotiate", "queue", "read", "verify", "total")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class Children(dict[str | tuple[str, ...], _Metric]):
    """The children of a metric by their labels, each looked up in the metric once.

    It holds as many as the metric itself, which forgets none: labels must be of few values, never a caller's words.
    """

    def __init__(self, metric: _Metric) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: str | tuple[str, ...]) -> _Metric:
        """Prometheus shows a child from here on."""
        child = self[labels] = self._metric.labels(*((labels,) if isinstance(labels, str) else labels))
        return child


class ControlMetrics:
    """The metrics of one control process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.transfers = Counter(
            "kvferry_transfers", "Transfers that ended.", ["state", "reason", "path"], registry=registry
        )
        self.active_transfers = Gauge("kvferry_active_transfers", "Transfers that have not ended.", registry=registry)
        self.received_bytes = Counter(
            "kvferry_transfer_received_bytes", "Bytes that arrived.", ["path"], registry=registry
        )
        self.descriptors = Counter(
            "kvferry_transfer_descriptors", "Pieces that were read.", ["path"], registry=registry
        )
        self.early_reads = Counter(
            "kvferry_transfer_early_reads",
            "Transfers whose reads were sent by what their source had told, before it answered.",
            registry=registry,
        )
        self.sources_given_up = Counter(
            "kvferry_transfer_sources_given_up",
            "Sources that transfers went on without, having others.",
            ["reason"],
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "kvferry_transfer_stage_seconds",
            "Time of succeeded transfers by stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.live_publications = Gauge(
            "kvferry_live_publications", "Publications whose blocks are pinned.", registry=registry
        )
        self.publications = Counter("kvferry_publications", "Publications that ended.", ["state"], registry=registry)
        self.ranks_up = Gauge("kvferry_ranks_up", "Data planes with a session.", registry=registry)
        self.workers = Gauge("kvferry_workers", "Live workers in the snapshot.", registry=registry)
        self.etcd_connected = Gauge("kvferry_etcd_connected", "1 while etcd's watch is in place.", registry=registry)
        self.registered = Gauge(
            "kvferry_registered", "1 while the worker's key is held under a live lease.", registry=registry
        )
        self.incarnation = Gauge("kvferry_incarnation", "The worker's incarnation.", registry=registry)
        self.negotiations = Counter(
            "kvferry_negotiations", "Negotiations answered as a source.", ["reason"], registry=registry
        )
        self._attested = Gauge(
            "kvferry_attested_gbytes_per_second",
            "Rate of a way to a source worker, of its slowest pair of ranks, as last probed.",
            ["source", "path", "backend", "transport"],
            registry=registry,
        )
        self._degraded = Gauge(
            "kvferry_attested_degraded",
            "1 for a way to a source worker that has lost half of its rate.",
            ["source", "path", "backend", "transport"],
            registry=registry,
        )
        self.bounds_reached = Counter(
            "kvferry_bounds_reached", "Transfers and publications refused for a bound.", ["bound"], registry=registry
        )

    def show_attested(self, attested: Iterable[AttestedSource]) -> None:
        """Show what is attested now, and nothing else."""
        self._attested.clear()
        self._degraded.clear()
        for source in attested:
            for route in source.routes:
                way = way_facts(route)
                labels = source.worker, way.path, way.backend, way.transport
                self._attested.labels(*labels).set(route.gbytes_per_s)
                self._degraded.labels(*labels).set(route.degraded)

    def count_refusal(self, error: KvferryError) -> None:
        """Count what was refused for a bound of this worker: control's own, or one of its data planes'."""
        if error.reason is Reason.RESOURCE_EXHAUSTED:
            self.bounds_reached.labels(error.metadata.get("field", "")).inc()
