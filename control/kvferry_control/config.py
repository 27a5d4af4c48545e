"""Control's configuration: one frozen object, made once by :mod:`kvferry_control.config_reading`.

Keys, variables and flags follow from the fields here; what is written below a field is its help.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from kvferry.core.path_floor import PathFloor, path_floor
from kvferry.rpc.polling import POLL_S_MAX

WorkerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
PULL_TIMEOUT_S = 30.0
DRAIN_S_MAX = 86_400.0
"""Longest time that a drain may take."""
Address = Annotated[str, Field(min_length=3, max_length=260)]


class Role(StrEnum):
    """What a worker is for."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class WorkerSection(_Section):
    """``[worker]``: who this is and where it listens."""

    name: WorkerName
    """Unique among the workers under ``etcd.prefix``."""
    role: Role
    """What the worker is for."""
    listen: Address
    """host:port for routers and peers; port 0 takes a free one."""
    engine_socket: str
    """Path of the Unix socket for the engine."""
    advertise: Address | None = None
    """host:port under which routers and peers reach ``listen``, if it differs."""


class RankSection(_Section):
    """``[[ranks]]``: one data plane, in order of ranks."""

    socket: str
    """What ``kvferry dataplane --socket`` was given."""


class EtcdSection(_Section):
    """``[etcd]``: where the cluster's workers are found."""

    endpoints: tuple[str, ...] = Field(min_length=1, max_length=16)
    """host:port, http://host:port or https://host:port."""
    prefix: str = "/kvferry"
    """Clusters that must not see each other have different ones."""
    lease_ttl_s: int = Field(default=10, ge=1, le=300)
    """A worker that is silent this long is gone for the others."""
    ca_file: Path | None = None
    """PEM, for TLS: the authority of etcd's certificate."""
    cert_file: Path | None = None
    """PEM: control's certificate, where etcd asks for one."""
    key_file: Path | None = None
    """PEM: its key."""
    user: str | None = None
    """Where etcd has authentication on."""
    password_file: Path | None = None
    """Its text is the password."""


class MetricsSection(_Section):
    """``[metrics]``: the Prometheus endpoint; without it there is none."""

    listen: Address
    """host:port of Prometheus metrics; port 0 takes a free one."""


class LogSection(_Section):
    """``[log]``: how much is logged, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, otherwise json."""


class LimitsSection(_Section):
    """``[limits]``: the bounds."""

    active_transfers: int = Field(default=4096, ge=1, le=1_000_000)
    """Transfers into this worker that have not ended."""
    kept_transfers: int = Field(default=10_000, ge=1, le=1_000_000)
    """Terminal transfers that are remembered."""
    live_publications: int = Field(default=16_384, ge=1, le=1_000_000)
    """Publications that have not ended."""
    kept_publications: int = Field(default=10_000, ge=1, le=1_000_000)
    """Ended publications that are remembered."""
    blocks_per_request: int = Field(default=1_000_000, ge=1, le=4_000_000)
    """Block ids in one publish or pull, over all groups."""
    ttl_s: float = Field(default=3600.0, gt=0, le=86_400)
    """Longest lease an engine may ask for."""
    timeout_s: float = Field(default=3600.0, gt=0, le=86_400)
    """Longest time a transfer may take."""
    source_time_share: float = Field(default=0.5, gt=0, lt=1)
    """While a transfer has further sources, one of them gets at most this part of the time that is left."""
    span_bytes: int = Field(default=32 << 20, ge=1 << 16, le=1 << 30)
    """A transfer with several sources is read and verified in spans of about so many bytes on each rank."""
    told_readers: int = Field(default=8, ge=0, le=256)
    """Readers of this worker that are told of its publications before they ask, so that they begin to read at once;
    where there are more, they ask. 0: none is told."""
    poll_s: float = Field(default=0.0, ge=0, le=POLL_S_MAX)
    """Control looks for the next message for so long before it sleeps: pulls end sooner, at the cost of a core
    while they go on. 0: it sleeps at once."""
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

    timeout_s: float = Field(default=PULL_TIMEOUT_S, gt=0, le=86_400)
    """How long they may take, at most ``limits.timeout_s``."""
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
    """The sockets of the data planes, in the order of ranks."""
    trtllm_config: Path | None = None
    """An engine's YAML file of TensorRT-LLM, whose ``kv_transfer_timeout_ms`` is taken for ``transfers.timeout_s``."""
    etcd: EtcdSection
    metrics: MetricsSection | None = None
    log: LogSection = LogSection()
    drain: DrainSection = DrainSection()
    health: HealthSection = HealthSection()
    limits: LimitsSection = LimitsSection()
    transfers: TransfersSection = TransfersSection()

    @property
    def pull_timeout_s(self) -> float:
        """How long a pull may take that does not say it."""
        return min(self.transfers.timeout_s, self.limits.timeout_s)
