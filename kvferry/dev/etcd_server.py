"""A real etcd for development, tests and the demo, on loopback if no other place is named.

Its data is not safe: writes are not synced to disk.
"""

import contextlib
import http.client
import json
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kvferry.dev.etcd_process import (
    EtcdBinaryNotFoundError,
    EtcdServerError,
    etcd_version,
    find_etcd_binary,
    spawn,
)

__all__ = ["EtcdBinaryNotFoundError", "EtcdCluster", "EtcdPlace", "EtcdServer", "EtcdServerError", "EtcdServerTls"]

LOOPBACK = "127.0.0.1"

_START_ATTEMPTS_MAX = 5
_POLL_S = 0.01
_HEALTH_TIMEOUT_S = 0.5
_STOP_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class EtcdServerTls:
    """Certificate files of a server.

    With ``client_cert_auth`` clients must show a certificate that ``ca_file`` signed.
    """

    ca_file: Path
    cert_file: Path
    key_file: Path
    client_cert_auth: bool = False


@dataclass(frozen=True, slots=True)
class EtcdPorts:
    """Loopback ports of one server: for clients, for other members, for health and metrics (plain http)."""

    client: int
    peer: int
    metrics: int


def _call(function: Callable[[], bool]) -> bool:
    return function()


@dataclass(frozen=True, slots=True)
class EtcdPlace:
    """Where a server runs."""

    host: str = LOOPBACK
    """Address that it listens on."""
    launcher: tuple[str, ...] = ()
    """What to put in front of etcd's own command line to run it there."""
    call: Callable[[Callable[[], bool]], bool] = _call
    """Runs a function where ``host`` can be reached."""


class EtcdServer:
    """One etcd process; a context manager, or call :meth:`start` and :meth:`stop`. Its methods block.

    ``data_dir`` is kept if given; else it is a temporary folder that :meth:`stop` removes. ``cluster_token``
    makes the cluster's id and stays the same over :meth:`wipe`, as it does when an operator loses a disk.
    """

    def __init__(
        self,
        *,
        name: str = "dev",
        data_dir: Path | None = None,
        binary: Path | None = None,
        tls: EtcdServerTls | None = None,
        cluster_token: str | None = None,
        heartbeat_ms: int = 10,
        election_ms: int = 100,
        place: EtcdPlace | None = None,
    ) -> None:
        self.name = name
        self._binary = binary or find_etcd_binary()
        self._tls = tls
        self._token = cluster_token or f"kvferry-dev-{secrets.token_hex(8)}"
        self._timing = (f"--heartbeat-interval={heartbeat_ms}", f"--election-timeout={election_ms}")
        self._place = place or EtcdPlace()
        self._keep_data = data_dir is not None
        self._base = data_dir or Path(tempfile.mkdtemp(prefix="kvferry-etcd-"))
        self._ports: EtcdPorts | None = None
        self._members: Mapping[str, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Address for clients, such as ``http://127.0.0.1:port``, or https. Known once started, kept over restarts."""
        return f"{'https' if self._tls else 'http'}://{self._place.host}:{self._required_ports().client}"

    @property
    def pid(self) -> int:
        """Process id. Raises :class:`EtcdServerError` if the server is not running."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """True between start and kill or stop, also while paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        """What etcd has written to stdout and stderr, over all starts."""
        return self._base / "etcd.log"

    def start(self, *, timeout_s: float = 15.0, wait: bool = True) -> Self:
        """Start on free ports, or on those of the last start; return when healthy unless ``wait`` is False.

        Raises :class:`EtcdServerError` with the end of etcd's log. Another process may take a port between
        its choice and etcd's start, so a port in use is tried again.
        """
        if self.running:
            raise EtcdServerError(f"etcd {self.name} is running already")
        deadline = time.monotonic() + timeout_s
        fixed = self._ports is not None
        for attempt in range(1, _START_ATTEMPTS_MAX + 1):
            if not fixed:
                self._ports = choose_ports()
            self._spawn()
            try:
                if wait:
                    self.wait_healthy(timeout_s=deadline - time.monotonic())
            except EtcdServerError as error:
                self.kill()
                if attempt == _START_ATTEMPTS_MAX or "address already in use" not in str(error):
                    raise
            else:
                return self
        raise AssertionError("unreachable")

    def restart(self, *, timeout_s: float = 15.0) -> Self:
        """Start again with the same ports and data, killing the process first if it runs."""
        self.kill()
        return self.start(timeout_s=timeout_s)

    def kill(self) -> None:
        """SIGKILL; does nothing if the process has ended."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process, gently if it listens, and remove temporary data."""
        self.resume()
        self._end(signal.SIGTERM)
        if not self._keep_data:
            shutil.rmtree(self._base, ignore_errors=True)

    def wipe(self) -> None:
        """Kill the process and delete its data: the next start has an empty store at the same addresses."""
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)

    def pause(self) -> None:
        """Freeze the process: connections stay open and nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGCONT)

    def healthy(self) -> bool:
        """True if the server has a leader and serves linearizable reads."""
        return self._place.call(self._answers_healthy)

    def _answers_healthy(self) -> bool:
        connection = http.client.HTTPConnection(
            self._place.host, self._required_ports().metrics, timeout=_HEALTH_TIMEOUT_S
        )
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            return answer.status == http.HTTPStatus.OK and json.loads(answer.read())["health"] == "true"
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_healthy(self, *, timeout_s: float = 15.0) -> None:
        """Return once healthy. Raises :class:`EtcdServerError` when time is up or the process has ended."""
        deadline = time.monotonic() + timeout_s
        while not self.healthy():
            if not self.running:
                raise EtcdServerError(f"etcd {self.name} ended while starting: {self._log_tail()}")
            if time.monotonic() >= deadline:
                raise EtcdServerError(f"etcd {self.name} not healthy in {timeout_s:g} s: {self._log_tail()}")
            time.sleep(_POLL_S)

    def join_cluster(self, ports: EtcdPorts, members: Mapping[str, int]) -> None:
        """Before the first start: use these ports, among members given as name to peer port."""
        self._ports, self._members = ports, members

    @property
    def _data(self) -> Path:
        return self._base / "data"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise EtcdServerError(f"etcd {self.name} is not running")
        return self._process

    def _required_ports(self) -> EtcdPorts:
        if self._ports is None:
            raise EtcdServerError(f"etcd {self.name} was never started")
        return self._ports

    def _spawn(self) -> None:
        self._base.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = spawn(self._binary, self._arguments(), log, self._place.launcher)

    def _arguments(self) -> list[str]:
        ports = self._required_ports()
        members = self._members or {self.name: ports.peer}
        peers = ",".join(f"{name}={self._http(port)}" for name, port in members.items())
        arguments = [
            f"--name={self.name}",
            f"--data-dir={self._data}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self._http(ports.peer)}",
            f"--initial-advertise-peer-urls={self._http(ports.peer)}",
            f"--initial-cluster={peers}",
            f"--initial-cluster-token={self._token}",
            f"--listen-metrics-urls={self._http(ports.metrics)}",
            "--log-level=warn",
            *self._timing,
        ]
        if etcd_version(self._binary) >= (3, 5):
            arguments.append("--unsafe-no-fsync")
        return [*arguments, *self._tls_arguments()]

    def _http(self, port: int) -> str:
        return f"http://{self._place.host}:{port}"

    def _tls_arguments(self) -> list[str]:
        if self._tls is None:
            return []
        tls = self._tls
        arguments = [f"--cert-file={tls.cert_file}", f"--key-file={tls.key_file}"]
        if tls.client_cert_auth:
            arguments += ["--client-cert-auth", f"--trusted-ca-file={tls.ca_file}"]
        return arguments

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _log_tail(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.log_file.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return "no log"


class EtcdCluster:
    """Several members on loopback. Use it as a context manager, or call :meth:`start` and :meth:`stop`."""

    def __init__(self, *, size: int = 3, heartbeat_ms: int = 50, election_ms: int = 500) -> None:
        token = f"kvferry-dev-{secrets.token_hex(8)}"
        self.members = tuple(
            EtcdServer(name=f"m{index}", cluster_token=token, heartbeat_ms=heartbeat_ms, election_ms=election_ms)
            for index in range(size)
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses for clients, one per member."""
        return tuple(member.endpoint for member in self.members)

    def start(self, *, timeout_s: float = 30.0) -> Self:
        """Start all members and return when all are healthy. Raises :class:`EtcdServerError`.

        A port that another process took between its choice and the start makes all of them start again.
        """
        deadline = time.monotonic() + timeout_s
        for attempt in range(1, _START_ATTEMPTS_MAX + 1):
            try:
                self._start_once(deadline)
            except EtcdServerError as error:
                for member in self.members:
                    member.wipe()
                if attempt == _START_ATTEMPTS_MAX or "address already in use" not in str(error):
                    self.stop()
                    raise
            else:
                return self
        raise AssertionError("unreachable")

    def _start_once(self, deadline: float) -> None:
        ports = {member.name: choose_ports() for member in self.members}
        peers = {name: chosen.peer for name, chosen in ports.items()}
        for member in self.members:
            member.join_cluster(ports[member.name], peers)
            member.start(wait=False)
        for member in self.members:
            member.wait_healthy(timeout_s=deadline - time.monotonic())

    def stop(self) -> None:
        """Stop all members and remove their data."""
        for member in self.members:
            member.kill()
        for member in self.members:
            member.stop()


def choose_ports() -> EtcdPorts:
    """Three free loopback ports; nothing keeps them free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for sock in sockets:
            sock.bind((LOOPBACK, 0))
        return EtcdPorts(*(sock.getsockname()[1] for sock in sockets))
