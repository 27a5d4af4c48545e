"""The data plane's figures."""

from prometheus_client import generate_latest

from kvferry_dataplane.metrics import Metrics
from kvferry_dataplane.reads.request import ReadOutcome

COUNTED = 'kvferry_dataplane_reads_total{path="",reason="",state="succeeded"} 2.0'


def test_whoever_was_told_of_a_read_finds_it_counted() -> None:
    """What has not been counted yet is when somebody looks, once."""
    metrics = Metrics()
    for name in ("first", "second"):
        metrics.read_ended(ReadOutcome(name, None, 0, 0, 0.0, 0.0, 0.0, ()))
    assert COUNTED in generate_latest(metrics.registry).decode()
    metrics.settle()
    assert COUNTED in generate_latest(metrics.registry).decode()
