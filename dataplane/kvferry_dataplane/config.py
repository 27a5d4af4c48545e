"""The data plane's configuration: one frozen object, made once by :mod:`kvferry_dataplane.config_reading`."""

from dataclasses import dataclass, field
from pathlib import Path

from kvferry.core.backends import Transport
from kvferry_dataplane.paths import PathPolicy

POOL_BYTES_MAX = 1 << 50

_RDMA_DEVICES = Path("/sys/class/infiniband")


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
    ucx_library: str | None = None
    """The file of UCX that direct UCX takes; None: the one that is found."""
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
    poll_seconds: float = 0.0
    """The event loop looks for control's next message for so long before it sleeps."""
    checksum_every: int = 0
    """One in so many of the blocks that are published is summed, for readers that compare: 0 none, 1 all."""
    ready_fd: int | None = None
    """Where the line `ready` is written once the process serves."""


def has_rdma_devices() -> bool:
    """Whether this machine has RDMA devices that this process sees."""
    return _RDMA_DEVICES.is_dir() and any(_RDMA_DEVICES.iterdir())
