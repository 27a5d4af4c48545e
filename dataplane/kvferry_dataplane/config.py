"""The data plane's configuration: one frozen object, read once, refusing what it does not understand."""

import ipaddress
import math
import os
import re
from argparse import Namespace
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from kvferry.core.backends import Backend, NixlBackend, Transport, resolve_transport
from kvferry.core.checksums.shares import every_of
from kvferry.core.errors import ConfigInvalid, InvalidArgument
from kvferry.logs import FORMATS
from kvferry_dataplane.paths import PackWire, PathPolicy, PathRule, SameHost, WireRule

LEASES_MAX = 1 << 20
READS_MAX = 1 << 16
POOL_BYTES_MAX = 1 << 50
THREADS_MAX = 64
COPY_THREADS_AUTO_MAX = 8
SM_COUNT_MAX = 1024
SECONDS_MAX = 86_400.0
LOG_LEVELS = ("debug", "info", "warning", "error")

_RDMA_DEVICES = Path("/sys/class/infiniband")
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DEVICE = re.compile(r"cpu|cuda:\d{1,3}")

Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address to listen on; port 0 takes a free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Config:
    """How a data plane runs."""

    device: str
    """`cpu` or `cuda:N`."""
    pool_bytes: int
    socket: Path
    """Control's socket; engines use the same with `.pool` appended."""
    metrics_listen: Listen | None = None
    log_format: str = "auto"
    log_level: str = "info"
    lease_slot_count: int = 16384
    max_reads: int = 4096
    """Reads that may be queued or running."""
    max_outstanding_bytes: int = POOL_BYTES_MAX
    """Bytes that queued and running reads may come to."""
    transport: Transport = Transport.NIXL_UCX
    """What moves bytes between hosts."""
    paths: PathPolicy = field(default_factory=PathPolicy)
    """Which paths reads may take."""
    copy_thread_count: int = 2
    """Threads that copy between pools of host memory."""
    sm_count_max: int | None = None
    """Multiprocessors of the GPU that copies may take; None: all."""
    pack_listen: Listen | None = None
    """Where pieces are packed for readers on other hosts; None: nowhere."""
    pack_advertise: Listen | None = None
    """Under which address readers find that; None: the one that is listened on."""
    pack_congestion: str = "auto"
    """Congestion control of what is sent there; `auto` is the system's, unless that paces by timers."""
    drain_seconds: float = 90.0
    """How long it stays for control and for what it holds once it was told to end."""
    stall_seconds: float = 10.0
    """A thread that does not answer for so long makes the health service say NOT_SERVING."""
    checksum_every: int = 0
    """One in so many of the blocks that are published is summed, for readers that compare: 0 none, 1 all."""
    ready_fd: int | None = None
    """Where the line `ready` is written once the process serves."""


def config_from_flags(flags: Namespace) -> Config:
    """Check the command line's values.

    Raises:
        ConfigInvalid: names the flag's field and its value.
    """
    if not _DEVICE.fullmatch(flags.device):
        raise ConfigInvalid.of_field("device", flags.device, "must be cpu or cuda:N")
    pool_bytes = parse_size("pool_bytes", flags.pool_bytes)
    if not 0 < pool_bytes <= POOL_BYTES_MAX:
        raise ConfigInvalid.of_field("pool_bytes", pool_bytes, f"must be 1 to {POOL_BYTES_MAX}")
    pack_listen, pack_advertise = _pack_addresses(flags.pack_listen, flags.pack_advertise)
    transport = _transport(flags.backend, flags.nixl_backend)
    return Config(
        device=flags.device,
        pool_bytes=pool_bytes,
        socket=Path(flags.socket),
        metrics_listen=None if flags.metrics_listen is None else parse_listen("metrics_listen", flags.metrics_listen),
        log_format=_one_of("log_format", flags.log_format, FORMATS),
        log_level=_one_of("log_level", flags.log_level, LOG_LEVELS),
        lease_slot_count=_count("max_leases", flags.max_leases, LEASES_MAX),
        max_reads=_count("max_reads", flags.max_reads, READS_MAX),
        max_outstanding_bytes=parse_size("max_outstanding_bytes", flags.max_outstanding_bytes),
        transport=transport,
        paths=PathPolicy(
            _path_rule(flags.path, transport),
            _choice("same_host", flags.same_host, SameHost),
            WireRule(_choice("pack_wire", flags.pack_wire, PackWire), has_rdma_devices()),
        ),
        copy_thread_count=_copy_threads(flags.copy_threads),
        sm_count_max=None if flags.sm_count == "all" else _count("sm_count", flags.sm_count, SM_COUNT_MAX),
        pack_listen=pack_listen,
        pack_advertise=pack_advertise,
        pack_congestion=flags.pack_congestion,
        drain_seconds=_seconds("drain_timeout", flags.drain_timeout),
        stall_seconds=_seconds("stall_timeout", flags.stall_timeout, 0.5),
        checksum_every=_every(flags.checksums),
        ready_fd=None if flags.ready_fd is None else _count("ready_fd", flags.ready_fd, 1 << 20),
    )


def has_rdma_devices() -> bool:
    """Whether this machine has RDMA devices that this process sees."""
    return _RDMA_DEVICES.is_dir() and any(_RDMA_DEVICES.iterdir())


def parse_size(field: str, text: str) -> int:
    """Bytes of a size like `1GiB`, `512 MiB` or `4096`.

    Raises:
        ConfigInvalid: not such a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigInvalid.of_field(field, text, "must be bytes, or a number with KiB, MiB, GiB or TiB")
    return int(match[1]) * _UNITS[match[2]]


def parse_listen(field: str, text: str) -> Listen:
    """The address of `host:port`; an IPv6 host stands in brackets.

    Raises:
        ConfigInvalid: not such an address.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigInvalid.of_field(field, text, "must be host:port")
    return Listen(host, int(port))


def _pack_addresses(listen_text: str | None, advertise_text: str | None) -> tuple[Listen | None, Listen | None]:
    listen = None if listen_text is None else parse_listen("pack_listen", listen_text)
    advertise = None if advertise_text is None else parse_listen("pack_advertise", advertise_text)
    if listen is None:
        if advertise is not None:
            raise ConfigInvalid.of_field("pack_advertise", advertise_text, "pack_listen is not given")
    elif advertise is None and _is_unspecified(listen.host):
        raise ConfigInvalid.of_field("pack_listen", listen_text, "readers cannot find that: pack_advertise is needed")
    return listen, advertise


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigInvalid.of_field(field, value, f"must be one of {', '.join(allowed)}")
    return value


def _choice(field: str, value: str, kind: type[Choice]) -> Choice:
    return kind(_one_of(field, value, tuple(kind)))


def _transport(backend: str, nixl_backend: str | None) -> Transport:
    wanted = None if nixl_backend is None else _choice("nixl_backend", nixl_backend, NixlBackend)
    return resolve_transport(_choice("backend", backend, Backend), wanted)


def _path_rule(text: str, transport: Transport) -> PathRule:
    rule = _choice("path", text, PathRule)
    if rule in (PathRule.NIXL, PathRule.UCX) and rule.value != transport.method:
        raise ConfigInvalid.of_field("path", text, f"the transport is {transport}: see backend and nixl_backend")
    return rule


def _copy_threads(text: str) -> int:
    if text != "auto":
        return _count("copy_threads", text, THREADS_MAX)
    # An engine needs the rest; more than a few threads do not copy faster than memory allows.
    return min(max(len(os.sched_getaffinity(0)) // 2, 2), COPY_THREADS_AUTO_MAX)


def _seconds(field: str, text: str, least: float = 0.0) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= SECONDS_MAX:
        raise ConfigInvalid.of_field(field, text, f"must be {least:g} to {SECONDS_MAX:g} seconds")
    return seconds


def _every(text: str) -> int:
    try:
        return every_of("checksums", text)
    except InvalidArgument as error:
        raise ConfigInvalid(error.message, metadata=error.metadata) from error


def _count(field: str, text: str, bound: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= bound:
        raise ConfigInvalid.of_field(field, text, f"must be 1 to {bound}")
    return int(text)
