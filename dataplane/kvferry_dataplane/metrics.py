"""Figures for Prometheus."""

from collections import deque
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.registry import Collector

from kvferry.core.errors import KvferryError
from kvferry.core.reasons import Reason
from kvferry_dataplane.attestation.prober import Prober
from kvferry_dataplane.reads.request import ReadOutcome

_SECONDS = (1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The data plane's metrics, in a registry of their own.

    Counting a read takes longer than telling of its end, so it waits until :meth:`settle`, which whoever looks at the
    registry calls too: nobody who was told of an end misses it there.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ended: deque[ReadOutcome] = deque()
        self.registry.register(_Settling(self))
        ProcessCollector(registry=self.registry)
        self._reads = self._counter(
            "reads", "Reads that ended, by state, reason of failure and path.", ("state", "reason", "path")
        )
        self._bytes = self._counter("read_bytes", "Bytes that arrived.", ("path",))
        self._descriptors = self._counter("read_descriptors", "Pieces of the plans of reads.", ("path",))
        self._seconds = Histogram(
            "kvferry_dataplane_read_seconds",
            "Seconds of reads by stage.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._compared_bytes = self._counter(
            "compared_bytes", "Bytes that arrived whose checksums were those of their source."
        )
        self.checksum_bytes = self._gauge("checksum_bytes", "Memory of the checksums of what is published.")
        self.reads_outstanding = self._gauge("reads_outstanding", "Reads queued or running.")
        self.reads_queued = self._gauge("reads_queued", "Reads that wait for their turn.")
        self.queued_bytes = self._gauge("queued_bytes", "Bytes of the reads that wait for their turn.")
        self._queue_seconds = Histogram(
            "kvferry_dataplane_queue_seconds",
            "Seconds that reads waited for their first byte to be asked for, by priority: below, at or above 0.",
            ("priority",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rollovers = self._gauge("rollovers", "Reader agents given up since the start.")
        self.leases_live = self._gauge("leases_live", "Leases that hold.")
        self.leases_granted = self._counter("leases_granted", "Leases granted.")
        self._leases_ended = self._counter("leases_ended", "Leases that ended, by cause.", ("cause",))
        self.pool_bytes = self._gauge("pool_bytes", "Size of the pool.")
        self.blocks_pinned = self._gauge("blocks_pinned", "Blocks that leases pin.")
        self.session_connected = self._gauge("session_connected", "1 while a control is connected.")
        self.events_dropped = self._gauge("events_dropped", "Events that no control came to fetch.")
        self.packed_bytes = self._gauge("packed_bytes", "Bytes sent to readers over the packed path since the start.")
        self.pack_connections = self._gauge("pack_connections", "Readers connected for the packed path.")
        self.pack_slots_held = self._gauge("pack_slots_held", "Staging slots in use for readers.")
        self.read_slots_held = self._gauge("read_slots_held", "Staging slots in use for what is read.")
        self._attested_peers = self._gauge("attested_peers", "Peers to which every way is attested.")
        self._degraded_ways = self._gauge("degraded_ways", "Ways that have lost half of their attested rate.")
        self._commands_refused = self._counter("commands_refused", "Commands refused, by reason.", ("reason",))
        self._bounds_reached = self._counter("bounds_reached", "Commands refused for a bound, by its name.", ("bound",))

    def show_attestations(self, prober: Prober) -> None:
        """Show what is known of the ways to peers."""
        self._attested_peers.set_function(prober.attested_count)
        self._degraded_ways.set_function(prober.degraded_count)

    def read_ended(self, outcome: ReadOutcome) -> None:
        """Count a read, by the next :meth:`settle`."""
        self._ended.append(outcome)

    def settle(self) -> None:
        """Count the reads that ended, in any thread."""
        while self._ended:
            try:
                outcome = self._ended.popleft()
            except IndexError:  # Another thread was quicker.
                return
            self._count_read(outcome)

    def _count_read(self, outcome: ReadOutcome) -> None:
        path = outcome.main.path.value if outcome.main is not None else ""
        reason = "" if outcome.failure is None else outcome.failure.reason.value
        self._reads.labels("succeeded" if outcome.failure is None else "failed", reason, path).inc()
        for share in outcome.shares:
            self._bytes.labels(share.route.path.value).inc(share.received_bytes)
            self._descriptors.labels(share.route.path.value).inc(share.descriptor_count)
        self._seconds.labels("queue").observe(outcome.queue_seconds)
        self._queue_seconds.labels(_rank_of(outcome.priority)).observe(outcome.queue_seconds)
        self._seconds.labels("read").observe(outcome.read_seconds)
        self._seconds.labels("verify").observe(outcome.verify_seconds)
        if outcome.checksum_seconds:
            self._seconds.labels("checksum").observe(outcome.checksum_seconds)
            self._compared_bytes.inc(outcome.compared_bytes)

    def command_refused(self, error: KvferryError) -> None:
        """Count a refusal."""
        self._commands_refused.labels(error.reason.value).inc()
        if error.reason is Reason.RESOURCE_EXHAUSTED:
            self._bounds_reached.labels(error.metadata.get("field", "")).inc()

    def lease_ended(self, cause: str) -> None:
        """Count the end of a lease."""
        self._leases_ended.labels(cause).inc()

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"kvferry_dataplane_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"kvferry_dataplane_{name}", help_text, registry=self.registry)


class _Settling(Collector):
    """No metric: the registry asks it first, before the metrics are read."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        self._metrics.settle()
        return ()


def _rank_of(priority: int) -> str:
    """One of three: a label with a value for every priority would have no bound."""
    return "normal" if not priority else "high" if priority > 0 else "low"
