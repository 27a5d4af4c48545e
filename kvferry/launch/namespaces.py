"""Two network namespaces with a wire (veth) between them: two hosts, as far as the network goes, on one machine.

Processes in them share files and Unix sockets with everybody else; only TCP takes the wire. It needs root and ``ip``.
"""

import ctypes
import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog

from kvferry.core.errors import ConfigInvalid

_NAMES = Path("/run/netns")
_OURS = re.compile(r"kvferry-(\d+)-\d+-\w+")
_INTERFACE = "wire0"
# Reserved for documentation: nobody routes them, and in here nobody else could meet them.
_ADDRESSES = ("192.0.2.1", "192.0.2.2")
_PREFIX_LENGTH = 30
_CLONE_NEWNET = 0x40000000
_COMMAND_TIMEOUT_S = 10.0
_UP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_FIELD = "network"
_VALUE = "namespaces"

_Result = TypeVar("_Result")
_counter = itertools.count()
_log = structlog.get_logger("kvferry.launch")


@dataclass(frozen=True, slots=True)
class Namespace:
    """One side of the wire."""

    name: str
    address: str
    """IPv4 address of this side; the other side reaches it."""
    launcher: tuple[str, ...]
    """What to put in front of a program and its arguments to run it in here."""

    @property
    def listen(self) -> str:
        """Address to listen on, with a port that the system chooses."""
        return f"{self.address}:0"

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Run ``function`` in a thread of its own: the sockets that it makes belong to this namespace."""
        with ThreadPoolExecutor(max_workers=1, initializer=self._enter) as thread:
            return thread.submit(function).result()

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with (_NAMES / self.name).open("rb") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error), self.name)


class NamespacePair:
    """Two namespaces, ``source`` and ``destination``. A context manager; leaving it removes both.

    They bear this process's id in their names: entering also removes what dead processes left behind.

    Raises:
        ConfigInvalid: on entering, the system does not let us; names the reason.
    """

    source: Namespace
    destination: Namespace

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        ip = _ip_program()
        _remove_leftovers(ip)
        prefix = f"kvferry-{os.getpid()}-{next(_counter)}"
        names = [f"{prefix}-{side}" for side in ("source", "destination")]
        with ExitStack() as stack:
            for name in names:
                _run(ip, "netns", "add", name)
                stack.callback(_remove, ip, name)
            first, second = names
            wire = ("link", "add", _INTERFACE, "netns", first, "type", "veth", "peer", "name", _INTERFACE)
            _run(ip, *wire, "netns", second)
            self.source, self.destination = (
                _set_up(ip, name, address) for name, address in zip(names, _ADDRESSES, strict=True)
            )
            for name in names:
                _wait_running(ip, name)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _set_up(ip: str, name: str, address: str) -> Namespace:
    _run(ip, "-n", name, "address", "add", f"{address}/{_PREFIX_LENGTH}", "dev", _INTERFACE)
    for interface in ("lo", _INTERFACE):
        _run(ip, "-n", name, "link", "set", interface, "up")
    return Namespace(name, address, (ip, "netns", "exec", name))


def _wait_running(ip: str, name: str) -> None:
    # The kernel tells of a wire that has come up about once a second; until then UCX would see the loopback alone.
    deadline = time.monotonic() + _UP_TIMEOUT_S
    while " state UP " not in _run(ip, "-n", name, "-oneline", "link", "show", "dev", _INTERFACE):
        if time.monotonic() > deadline:
            raise ConfigInvalid.of_field(_FIELD, _VALUE, f"the wire did not come up in {_UP_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)


def _ip_program() -> str:
    if os.geteuid() != 0:
        raise ConfigInvalid.of_field(_FIELD, _VALUE, "needs root: it makes network namespaces")
    ip = shutil.which("ip")
    if ip is None:
        raise ConfigInvalid.of_field(_FIELD, _VALUE, "needs the program ip (Debian package iproute2)")
    return ip


def _remove_leftovers(ip: str) -> None:
    if not _NAMES.is_dir():
        return
    for name in sorted(path.name for path in _NAMES.iterdir()):
        owner = _OURS.fullmatch(name)
        if owner is not None and not Path("/proc", owner[1]).exists():
            _log.info("removing a network namespace that a dead process left", namespace=name)
            _remove(ip, name)


def _remove(ip: str, name: str) -> None:
    done = _ip(ip, "netns", "delete", name)
    if done.returncode != 0 and (_NAMES / name).exists():
        _log.warning("network namespace not removed", namespace=name, error=done.stderr.strip())


def _run(ip: str, *arguments: str) -> str:
    done = _ip(ip, *arguments)
    if done.returncode != 0:
        raise ConfigInvalid.of_field(_FIELD, _VALUE, f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _ip(ip: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - a list of arguments that this module made
        [ip, *arguments], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
    )
