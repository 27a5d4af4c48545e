"""From what a data plane was told to its configuration, refusing what it does not understand."""

import ipaddress
import math
import os
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from kvferry.config.settings import Settings, read_settings
from kvferry.config.trtllm import data_plane_layer
from kvferry.config.trtllm_file import engine_of
from kvferry.config.values import Layer, Value
from kvferry.core.backends import Backend, NixlBackend, Transport, resolve_transport
from kvferry.core.checksums.shares import every_of
from kvferry.core.errors import ConfigInvalid, InvalidArgument
from kvferry.logs import FORMATS
from kvferry.rpc.polling import POLL_S_MAX
from kvferry_dataplane.config import POOL_BYTES_MAX, Config, Listen, has_rdma_devices
from kvferry_dataplane.config_keys import LOG_LEVELS, PROGRAM
from kvferry_dataplane.paths import PackWire, PathPolicy, PathRule, SameHost, WireRule

LEASES_MAX = 1 << 20
READS_MAX = 1 << 16
THREADS_MAX = 64
COPY_THREADS_AUTO_MAX = 8
SM_COUNT_MAX = 1024
SECONDS_MAX = 86_400.0

_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DEVICE = re.compile(r"cpu|cuda:\d{1,3}")

Choice = TypeVar("Choice", bound=StrEnum)


def data_plane_settings(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Settings:
    """Read what a data plane is told; ``arguments`` None: this process's.

    Raises:
        ConfigInvalid: a file cannot be read, something is not known, or the engine's file does not decide.
    """
    return read_settings(PROGRAM, arguments, environment, _engine_layer)


def config_of(settings: Settings) -> Config:
    """Check the values.

    Raises:
        ConfigInvalid: names the key, its value and where that came from.
    """
    settings.check_required()
    try:
        return _config_of(settings)
    except ConfigInvalid as error:
        raise settings.blame(error) from error


def _engine_layer(given: Mapping[str, Value], environment: Mapping[str, str]) -> Layer:
    return data_plane_layer(engine_of(given), given, environment)


def _config_of(settings: Settings) -> Config:
    text = settings.needed
    pack_listen, pack_advertise = _pack_addresses(settings.text("pack_listen"), settings.text("pack_advertise"))
    transport = _transport(settings)
    return Config(
        device=_device(text("device")),
        pool_bytes=_pool_bytes(text("pool_bytes")),
        socket=Path(text("socket")),
        metrics_listen=_listen("metrics_listen", settings.text("metrics_listen")),
        log_format=_one_of("log_format", text("log_format"), FORMATS),
        log_level=_one_of("log_level", text("log_level"), LOG_LEVELS),
        lease_slot_count=_count("max_leases", text("max_leases"), LEASES_MAX),
        max_reads=_count("max_reads", text("max_reads"), READS_MAX),
        max_outstanding_bytes=_size("max_outstanding_bytes", text("max_outstanding_bytes")),
        transport=transport,
        ucx_library=settings.text("ucx_library"),
        paths=PathPolicy(
            _path_rule(text("path"), transport),
            _choice("same_host", text("same_host"), SameHost),
            WireRule(_choice("pack_wire", text("pack_wire"), PackWire), has_rdma_devices()),
        ),
        copy_thread_count=_copy_threads(text("copy_threads")),
        sm_count_max=None if text("sm_count") == "all" else _count("sm_count", text("sm_count"), SM_COUNT_MAX),
        pack_listen=pack_listen,
        pack_advertise=pack_advertise,
        pack_congestion=text("pack_congestion"),
        drain_seconds=_seconds("drain_timeout", text("drain_timeout")),
        stall_seconds=_seconds("stall_timeout", text("stall_timeout"), 0.5),
        poll_seconds=_seconds("poll_time", text("poll_time"), most=POLL_S_MAX),
        checksum_every=_every(text("checksums")),
        ready_fd=settings.ready_fd,
    )


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise ConfigInvalid.of_field("device", text, "must be cpu or cuda:N")
    return text


def _pool_bytes(text: str) -> int:
    pool_bytes = _size("pool_bytes", text)
    if not 0 < pool_bytes <= POOL_BYTES_MAX:
        raise ConfigInvalid.of_field("pool_bytes", pool_bytes, f"must be 1 to {POOL_BYTES_MAX}")
    return pool_bytes


def _size(field: str, text: str) -> int:
    """Bytes of a size like `1GiB`, `512 MiB` or `4096`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigInvalid.of_field(field, text, "must be bytes, or a number with KiB, MiB, GiB or TiB")
    return int(match[1]) * _UNITS[match[2]]


def _listen(field: str, text: str | None) -> Listen | None:
    """The address of `host:port`; an IPv6 host stands in brackets."""
    if text is None:
        return None
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigInvalid.of_field(field, text, "must be host:port")
    return Listen(host, int(port))


def _pack_addresses(listen_text: str | None, advertise_text: str | None) -> tuple[Listen | None, Listen | None]:
    listen, advertise = _listen("pack_listen", listen_text), _listen("pack_advertise", advertise_text)
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


def _transport(settings: Settings) -> Transport:
    nixl_text = settings.text("nixl_backend")
    nixl_backend = None if nixl_text is None else _choice("nixl_backend", nixl_text, NixlBackend)
    return resolve_transport(_choice("backend", settings.needed("backend"), Backend), nixl_backend)


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


def _seconds(field: str, text: str, least: float = 0.0, most: float = SECONDS_MAX) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        raise ConfigInvalid.of_field(field, text, f"must be {least:g} to {most:g} seconds")
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
