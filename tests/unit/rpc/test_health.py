"""The watch over a process's threads: what it counts, and what it says."""

import queue
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from kvferry.rpc.health import Check, HealthWatch, Pulse

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
BOUND_S = 10.0


def test_a_pulse_complains_until_the_thread_answers() -> None:
    """Asked once, the thread owes an answer; what it says from inside is told at the next turn."""
    posted: list[Callable[[], None]] = []
    found: list[str | None] = ["something is overdue"]
    pulse = Pulse("the thread", posted.append, lambda: found[0])
    assert pulse.complaint() is None
    assert "the thread does not answer" == pulse.complaint()
    assert 1 == len(posted)
    posted.pop()()
    assert "something is overdue" == pulse.complaint()
    found[0] = None
    posted.pop()()
    assert pulse.complaint() is None


def test_a_part_that_stays_wrong_does_not_serve_until_it_is_right(tmp_path: Path) -> None:
    """A complaint that lasts makes its services NOT_SERVING on the socket, one that does not last changes nothing, and
    other services go on."""
    changes: queue.Queue[Mapping[str, bool]] = queue.Queue()
    wrong: list[str | None] = [None]
    counted = [0]

    def once() -> str | None:
        counted[0] += 1
        return "a hiccup" if counted[0] % 2 else None

    checks = [Check(lambda: wrong[0], frozenset({"", "part"})), Check(once, frozenset({"other"}))]
    watch = HealthWatch(tmp_path / "health", checks, 0.2, changes.put)
    watch.start()
    try:
        assert {"": True, "part": True, "other": True} == changes.get(timeout=BOUND_S)
        wrong[0] = "stuck"
        assert {"": False, "part": False, "other": True} == changes.get(timeout=BOUND_S)
        assert (NOT_SERVING, SERVING) == (ask(tmp_path / "health", "part"), ask(tmp_path / "health", "other"))
        wrong[0] = None
        assert {"": True, "part": True, "other": True} == changes.get(timeout=BOUND_S)
        assert SERVING == ask(tmp_path / "health", "")
    finally:
        watch.stop()
    assert not (tmp_path / "health").exists()


def test_what_is_known_to_be_missing_counts_at_once(tmp_path: Path) -> None:
    """A check that needs no patience is believed at its first complaint."""
    changes: list[Mapping[str, bool]] = []
    watch = HealthWatch(
        tmp_path / "health", [Check(lambda: "gone", frozenset({""}), at_once=True)], 60.0, changes.append
    )
    watch.start()
    watch.stop()
    assert [{"": False}] == changes


def ask(socket: Path, service: str) -> int:
    """What the socket answers."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer: health_pb2.HealthCheckResponse = check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return answer.status


def test_a_taken_socket_is_named(tmp_path: Path) -> None:
    """A socket that cannot be bound is refused with its path."""
    with pytest.raises(Exception, match=str(tmp_path / "nowhere")):
        HealthWatch(tmp_path / "nowhere" / "health", [], 1.0, lambda _states: None)
