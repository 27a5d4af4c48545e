"""Control's configuration: one frozen object, one reader.

The file is TOML. A wrong key, a wrong value or a missing file is refused with the key's full name, its value, and for
an unknown key the nearest known one.
"""

import difflib
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kvferry.core.checksums.shares import every_of
from kvferry.core.errors import ConfigInvalid, InvalidArgument
from kvferry.core.path_floor import PathFloor, path_floor
from kvferry.rpc.addresses import check_address

WorkerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
DRAIN_S_MAX = 86_400.0
"""Longest time that a drain may take."""
Address = Annotated[str, Field(min_length=3, max_length=260)]


class Role(StrEnum):
    """What a worker is for."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkerSection(_Section):
    """``[worker]``: who this is and where it listens."""

    name: WorkerName
    role: Role
    listen: Address
    """host:port for routers and peers; port 0 takes a free one."""
    engine_socket: str
    """Path of the Unix socket for the engine."""
    advertise: Address | None = None
    """host:port under which routers and peers reach ``listen``, if it differs."""


class RankSection(_Section):
    """``[[ranks]]``: one data plane, in order of ranks."""

    socket: str


class EtcdSection(_Section):
    """``[etcd]``: where the cluster's workers are found."""

    endpoints: tuple[str, ...] = Field(min_length=1, max_length=16)
    """host:port, http://host:port or https://host:port."""
    prefix: str = "/kvferry"
    lease_ttl_s: int = Field(default=10, ge=1, le=300)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str | None = None
    password_file: Path | None = None


class MetricsSection(_Section):
    """``[metrics]``: the Prometheus endpoint; without it there is none."""

    listen: Address


class LogSection(_Section):
    """``[log]``: how much is logged, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class LimitsSection(_Section):
    """``[limits]``: the bounds."""

    active_transfers: int = Field(default=4096, ge=1, le=1_000_000)
    kept_transfers: int = Field(default=10_000, ge=1, le=1_000_000)
    """Terminal transfers that are remembered."""
    live_publications: int = Field(default=16_384, ge=1, le=1_000_000)
    kept_publications: int = Field(default=10_000, ge=1, le=1_000_000)
    """Ended publications that are remembered."""
    blocks_per_request: int = Field(default=1_000_000, ge=1, le=4_000_000)
    ttl_s: float = Field(default=3600.0, gt=0, le=86_400)
    """Longest lease an engine may ask for."""
    timeout_s: float = Field(default=3600.0, gt=0, le=86_400)
    """Longest time a transfer may take."""
    source_time_share: float = Field(default=0.5, gt=0, lt=1)
    """While a transfer has further sources, one of them gets at most this part of the time that is left."""
    span_bytes: int = Field(default=32 << 20, ge=1 << 16, le=1 << 30)
    """A transfer with several sources is read and verified in spans of about so many bytes on each rank."""
    watchers: int = Field(default=256, ge=1, le=10_000)
    """Streams of each kind that are served at once."""
    engine_timeout_s: float = Field(default=10.0, ge=1, le=600)
    """An engine that is silent this long counts as lost."""


class DrainSection(_Section):
    """``[drain]``: how the worker is taken out of service."""

    timeout_s: float = Field(default=60.0, ge=0, le=DRAIN_S_MAX)
    """What is left then is ended. 0: SIGTERM does not drain; leases and reads are left to the next control."""
    remote: bool = True
    """Whether who reaches ``worker.listen`` may begin and undo a drain."""


class HealthSection(_Section):
    """``[health]``: when the gRPC health service says NOT_SERVING."""

    stall_s: float = Field(default=10.0, ge=0.5, le=600)
    """After an event loop that does not turn for so long."""


class TransfersSection(_Section):
    """``[transfers]``: what pulls do that do not say it themselves."""

    verify: str = "off"
    """Compare checksums with the source's: ``off``, ``full`` or ``sampled:N``."""
    require_path: tuple[str, ...] = ()
    """Ways that pulls may take, such as ``local`` or ``nixl:rc_*``; ``!`` refuses, as in ``!*:tcp``. Empty: any."""
    min_gbytes_per_s: float = Field(default=0.0, ge=0)
    """Pairs that were attested with a lower rate are refused; 0: none is."""

    @property
    def floor(self) -> PathFloor:
        """What is demanded of the ways on which this worker pulls.

        Raises:
            ConfigInvalid: a rule cannot be understood.
        """
        return path_floor(self.require_path, self.min_gbytes_per_s)


class ControlConfig(_Section):
    """The whole configuration of one control process."""

    worker: WorkerSection
    ranks: tuple[RankSection, ...] = Field(min_length=1, max_length=64)
    etcd: EtcdSection
    metrics: MetricsSection | None = None
    log: LogSection = LogSection()
    drain: DrainSection = DrainSection()
    health: HealthSection = HealthSection()
    limits: LimitsSection = LimitsSection()
    transfers: TransfersSection = TransfersSection()


def load_config(path: Path) -> ControlConfig:
    """Read and check a configuration file.

    Raises:
        ConfigInvalid: the file cannot be read, is no TOML, or a key in it is wrong; names the key and its value.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid.of_field("--config", str(path), f"cannot be read: {error}") from error
    try:
        return parse_config(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid.of_field("--config", str(path), f"is not TOML: {error}") from error


def parse_config(values: Mapping[str, Any]) -> ControlConfig:
    """Check values that were read from somewhere.

    Raises:
        ConfigInvalid: names the key and its value.
    """
    try:
        config = ControlConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, values) from error
    check_address("worker.listen", config.worker.listen)
    if config.worker.advertise is not None:
        check_address("worker.advertise", config.worker.advertise)
    if config.metrics is not None:
        check_address("metrics.listen", config.metrics.listen)
    try:
        every_of("transfers.verify", config.transfers.verify)
    except InvalidArgument as error:
        raise ConfigInvalid(error.message, metadata=error.metadata) from error
    _ = config.transfers.floor
    sockets = [rank.socket for rank in config.ranks]
    for index, socket in enumerate(sockets):
        if socket in sockets[:index]:
            raise ConfigInvalid.of_field(f"ranks[{index}].socket", socket, "listed twice")
    return config


def _explain(error: ValidationError, values: Mapping[str, Any]) -> ConfigInvalid:
    first = error.errors()[0]
    key = _dotted(first["loc"])
    if first["type"] == "extra_forbidden":
        nearest = _nearest(first["loc"])
        hint = f"; the nearest known key is {nearest!r}" if nearest else ""
        return ConfigInvalid.of_field(key, first["input"], f"unknown key{hint}")
    if first["type"] == "missing":
        return ConfigInvalid.of_field(key, "(missing)", "is required")
    return ConfigInvalid.of_field(key, first["input"], str(first["msg"]))


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _nearest(location: tuple[int | str, ...]) -> str | None:
    """The known key that an unknown one most resembles, among its siblings first and then everywhere."""
    known = sorted(_known_keys(ControlConfig))
    wrong = ".".join(str(part) for part in location if isinstance(part, str))
    parent = wrong.rpartition(".")[0]
    siblings = [key for key in known if key.rpartition(".")[0] == parent]
    for candidates in (siblings, known):
        found = difflib.get_close_matches(wrong, candidates, n=1, cutoff=0.6)
        if found:
            return found[0]
    return None


def _known_keys(section: type[BaseModel], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, field in section.model_fields.items():
        keys.add(prefix + name)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                keys |= _known_keys(inner, f"{prefix}{name}.")
    return keys
