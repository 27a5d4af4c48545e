"""Children of metrics that are looked up once."""

from prometheus_client import generate_latest

from kvferry_control.metrics import Children, ControlMetrics


def test_children_are_the_metrics_own() -> None:
    """What is counted by way of them is shown; nothing is shown before, and one that was made otherwise is the same."""
    metrics = ControlMetrics()
    ended, stages = Children(metrics.transfers), Children(metrics.stage_seconds)
    assert b"kvferry_transfers_total{" not in generate_latest(metrics.registry)
    metrics.transfers.labels("succeeded", "", "nixl").inc()
    ended["succeeded", "", "nixl"].inc()
    ended["failed", "FENCED", "nixl"].inc()
    stages["read"].observe(0.25)
    shown = generate_latest(metrics.registry).decode()
    assert 'kvferry_transfers_total{path="nixl",reason="",state="succeeded"} 2.0' in shown
    assert 'kvferry_transfers_total{path="nixl",reason="FENCED",state="failed"} 1.0' in shown
    assert 'kvferry_transfer_stage_seconds_sum{stage="read"} 0.25' in shown
    assert [2, 1] == [len(ended), len(stages)]
