"""Health that tells a process that lives from one that gets on.

A thread of its own looks at the others a few times in the time after which they count as stuck, and answers the gRPC
health service on a socket of its own: an event loop that is stuck cannot speak for itself. What is counted are its own
turns, not seconds, so that a process that was stopped as a whole and goes on is not taken for a stuck one.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kvferry.core.errors import AddressInUse
from kvferry.rpc.options import server_options

SOCKET_SUFFIX = ".health"
EVERYTHING = ""
"""The service whose health is that of the whole process, as the health protocol has it."""
LIVENESS = "liveness"
"""The service that serves unless the process itself is at fault, so that its restart may help."""
TURNS = 10
"""At least so many turns, one after the other, does a thread not answer until it counts as stuck."""
_TURN_S_MAX = 1.0
_CALLS_MAX = 64

Complaint = Callable[[], str | None]
"""What is wrong at this moment; None: nothing. Called on the watch's thread."""

_log = structlog.get_logger("kvferry.health")


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold for ``services``; wrong after complaints in a row for the stall time, or ``at_once``."""

    complaint: Complaint
    services: frozenset[str]
    at_once: bool = False


class Pulse:
    """Asks a thread for a sign of life, one at a time.

    ``post`` has a thread call what it is given; ``inside`` runs there and says what is wrong with what it owns.
    """

    def __init__(
        self, what: str, post: Callable[[Callable[[], None]], object], inside: Complaint = lambda: None
    ) -> None:
        self._what = what
        self._post = post
        self._inside = inside
        self._answered = threading.Event()
        self._answered.set()
        self._found: str | None = None

    def complaint(self) -> str | None:
        """What is wrong with the thread, or with what it owns."""
        if not self._answered.is_set():
            return f"{self._what} does not answer"
        self._answered.clear()
        self._post(self._answer)
        return self._found

    def _answer(self) -> None:
        self._found = self._inside()
        self._answered.set()


class HealthWatch:
    """Looks at ``checks`` and serves what it finds at ``socket``; ``on_change`` is told every service's new state."""

    def __init__(
        self,
        socket: Path,
        checks: list[Check],
        stall_s: float,
        on_change: Callable[[Mapping[str, bool]], None],
    ) -> None:
        """``socket`` was claimed; ``stall_s``: a thread that does not answer for so long is stuck.

        Raises:
            AddressInUse: somebody took the socket in between.
        """
        self._socket = socket
        self._checks = checks
        self._counts = [0] * len(checks)
        self._turn_s = min(stall_s / TURNS, _TURN_S_MAX)
        self._patience = max(round(stall_s / self._turn_s), 1)
        self._on_change = on_change
        self._states: dict[str, bool] = {}
        self._stopping = threading.Event()
        self._servicer = health.HealthServicer()
        options = server_options()
        self._server = grpc.server(ThreadPoolExecutor(2), options=options, maximum_concurrent_rpcs=_CALLS_MAX)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        previous = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{socket}")
            self._server.start()
        except RuntimeError as error:
            raise AddressInUse.of_field("health socket", str(socket), str(error)) from error
        finally:
            os.umask(previous)
        self._thread = threading.Thread(target=self._run, name="kvferry-health", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Stop looking and serving; remove the socket."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._server.stop(0)
        self._socket.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopping.wait(self._turn_s):
            self._turn()

    def _turn(self) -> None:
        wrong: dict[str, str] = {}
        for index, check in enumerate(self._checks):
            complaint = check.complaint()
            self._counts[index] = 0 if complaint is None else self._counts[index] + 1
            if complaint is not None and self._counts[index] >= (1 if check.at_once else self._patience):
                wrong.update(dict.fromkeys(check.services, complaint))
        names = frozenset[str]().union(*(check.services for check in self._checks))
        states = {name: name not in wrong for name in names}
        if states != self._states:
            self._tell(states, wrong)

    def _tell(self, states: dict[str, bool], wrong: Mapping[str, str]) -> None:
        if self._states or wrong:
            log = _log.warning if wrong else _log.info
            log("health", not_serving={name or "(all)": why for name, why in sorted(wrong.items())})
        self._states = states
        for name, serving in states.items():
            self._servicer.set(name, status_of(serving))
        self._on_change(states)


async def check_health(channel: aio.Channel, service: str, timeout_s: float) -> int:
    """What a process answers for a service, as the health protocol's number.

    Raises:
        grpc.aio.AioRpcError: it did not answer, or knows no such service.
    """
    call: aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return (await call(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)).status


def status_of(serving: bool) -> int:
    """The health protocol's word for it."""
    return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
