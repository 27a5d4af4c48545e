"""Which reads are served first, and who waits for whom, in virtual time over agents without a transport."""

from kvferry.core.reasons import Reason
from kvferry_dataplane.paths import Path, Route
from tests.unit.dataplane.fakes import Bench, FakeAgent, FakeRouting, Network, bounds
from tests.unit.dataplane.test_executor import reason


def order(bench: Bench) -> list[str]:
    """The peers whose blocks were asked for, in order."""
    return [peer for peer, kind, _ in bench.network.posted if kind == "blocks"]


def test_a_source_with_many_reads_leaves_others_their_share() -> None:
    """A source with ten large reads and one with a single small one alternate: the small one is done early."""
    bench = Bench(bounds=bounds(step_bytes_max=100))
    for number in range(10):
        bench.submit(f"greedy-{number}", "greedy", batches=20)
    bench.submit("modest", "modest", batches=10)
    while "modest" not in bench.outcomes:
        bench.executor.step(bench.now)
    assert 10 == order(bench)[:20].count("modest")


def test_a_higher_priority_does_not_wait_for_what_came_before_it() -> None:
    """A read of a higher priority is served next, even where its source has as many reads under way as may be."""
    bench = Bench(bounds=bounds(step_bytes_max=100, active_reads_per_lane=2))
    for number in range(4):
        bench.submit(f"low-{number}", "a", batches=50)
    bench.executor.step(bench.now)
    bench.submit("high", "a", batches=3, priority=1)
    for _ in range(6):
        bench.executor.step(bench.now)
    assert ["high"] == list(bench.outcomes)


def test_a_priority_that_is_kept_back_gets_a_batch_now_and_then() -> None:
    """While higher priorities keep the data plane busy, a lower one is served once in a patience."""
    bench = Bench(bounds=bounds(step_bytes_max=100))
    bench.submit("low", "low", batches=50)
    for number in range(60):
        bench.submit(f"high-{number}", "high", batches=20, priority=1)
    bench.run(4.5)
    assert 4 <= order(bench).count("low") <= 6


def test_a_stuck_source_of_high_priority_keeps_nobody_back_for_long() -> None:
    """What a higher priority has in flight is waited for only while it moves."""
    agent = FakeAgent(network := Network(stuck={"stuck"}), 0, can_stop=True)
    packed = Route(Path.PACKED, "stream", "the only one")
    routing = FakeRouting({"stuck": packed, "low": packed})
    bench = Bench(network, bounds(), routing, lasting={Path.PACKED: agent})
    bench.submit("stuck", "stuck", batches=9, priority=9)
    bench.run(0.1)
    bench.submit("low", "low", batches=9)
    wait = bench.run(0.5)
    assert "low" not in bench.outcomes
    assert wait is not None
    assert wait <= 1.0
    bench.run(1.0)
    assert reason(bench, "low") is None


def test_stuck_sources_leave_room_for_others() -> None:
    """Sources that are stuck with large reads use up neither the pieces that may be planned nor the bytes in flight."""
    limits = bounds(batch_bytes_max=100, active_pieces_max=100, bytes_in_flight_max=1000)
    bench = Bench(Network(stuck={"x", "y"}), limits)
    for number in range(20):
        bench.submit(f"x-{number}", "x", batches=10)
        bench.submit(f"y-{number}", "y", batches=10)
    bench.run(0.1)
    bench.submit("moves", "z", batches=10)
    bench.run(0.1)
    assert ["moves"] == list(bench.outcomes)


def test_a_source_that_is_alone_has_half_of_the_bytes_in_flight() -> None:
    """What one source has in flight is bounded, whatever it asks for."""
    bench = Bench(Network(stuck={"a"}), bounds(bytes_in_flight_max=1000, bytes_in_flight_per_peer=1 << 30))
    for number in range(10):
        bench.submit(f"t{number}", "a", batches=9)
    bench.run(0.1)
    assert 5 == len(order(bench))


def test_the_eldest_of_a_lane_is_let_in() -> None:
    """A read that higher priorities of its own source leave no room becomes active after a patience, and is served."""
    bench = Bench(bounds=bounds(step_bytes_max=100, active_reads_per_lane=1))
    bench.submit("low", "a")
    for number in range(200):
        bench.submit(f"high-{number}", "a", batches=4, priority=1)
    bench.run(5.0)
    assert reason(bench, "low") is None
    assert len(bench.outcomes) < 201


def test_waiting_and_service_have_limits_of_their_own() -> None:
    """A read that is not served in time fails as QUEUE_TIMEOUT; one that is served has its whole time from then on."""
    bench = Bench(Network(stuck={"a"}), bounds(active_reads_per_lane=1))
    bench.submit("first", "a", deadline=1.0, queue_seconds=0.5)
    bench.submit("short", "a", deadline=1.0, queue_seconds=0.5)
    bench.submit("long", "a", deadline=1.0, queue_seconds=3.0)
    bench.run(0.6)
    assert {"short": Reason.QUEUE_TIMEOUT} == {name: reason(bench, name) for name in bench.outcomes}
    bench.run(1.0)
    assert Reason.DEADLINE_EXCEEDED == reason(bench, "first")
    bench.network.stuck.clear()
    bench.run(1.0)
    assert reason(bench, "long") is None


def test_a_read_that_is_served_is_not_ended_by_its_time_to_wait() -> None:
    """Once something was asked for, only the time for service counts, also past the time to wait."""
    bench = Bench(Network(stuck={"a"}))
    bench.submit("t", "a", deadline=1.0, queue_seconds=0.5)
    bench.run(0.9)
    bench.network.stuck.clear()
    bench.run(0.05)
    assert reason(bench, "t") is None


def test_a_read_that_is_served_late_has_its_service_time() -> None:
    """The time for service begins with the first byte asked for, not before."""
    bench = Bench(Network(stuck={"a"}), bounds(active_reads_per_lane=1, patience_seconds=100))
    bench.submit("first", "a", deadline=2.0)
    bench.submit("second", "a", deadline=2.0, queue_seconds=10.0)
    bench.run(3.0)
    assert ["first"] == list(bench.outcomes)
    # The peer is suspect, and what is asked of it first is no block: that is still waiting.
    bench.network.stuck.clear()
    bench.run(0.2)
    assert reason(bench, "second") is None
    assert 2.0 < bench.outcomes["second"].queue_seconds < 3.3
