"""What the system lets a process take: locked memory and descriptors."""

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.doctor.findings import Finding, Value, broken, none, ok, slow
from kvferry_dataplane.config import has_rdma_devices

MEMLOCK, DESCRIPTORS = "limits.memlock", "limits.descriptors"
DESCRIPTORS_MIN = 1024
_MEMLOCK_MIN = 1 << 30
"""Below this not even a small pool can be registered."""
_CAP_IPC_LOCK = 14


@dataclass(frozen=True, slots=True)
class Limits:
    """As they hold for this process; -1 is without a limit."""

    memlock_bytes: int
    has_ipc_lock: bool
    """Whether it may lock more than that."""
    has_rdma: bool
    descriptors: int


async def look() -> Sequence[Finding]:
    """The limits of this process, which those beside it in a container share."""
    return judge(read_limits())


def read_limits(status: Path = Path("/proc/self/status")) -> Limits:
    """The soft limits, which are what counts."""
    return Limits(
        memlock_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        has_ipc_lock=bool(effective_capabilities(status.read_text()) >> _CAP_IPC_LOCK & 1),
        has_rdma=has_rdma_devices(),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def effective_capabilities(status: str) -> int:
    """The bits of ``CapEff`` in the text of ``/proc/self/status``; none where it does not say."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16)
    return 0


def judge(limits: Limits) -> list[Finding]:
    """What the limits mean for a data plane."""
    return [_memlock(limits), _descriptors(limits)]


def _memlock(limits: Limits) -> Finding:
    unlimited = limits.memlock_bytes == resource.RLIM_INFINITY
    text = "unlimited" if unlimited else f"{limits.memlock_bytes / 1024:g} KiB"
    values: dict[str, Value] = {
        "memlock_bytes": limits.memlock_bytes,
        "cap_ipc_lock": limits.has_ipc_lock,
        "rdma": limits.has_rdma,
    }
    if not limits.has_rdma:
        return none(MEMLOCK, f"{text}; nothing locks memory, as there are no RDMA devices", **values)
    if unlimited or limits.has_ipc_lock:
        return ok(MEMLOCK, f"{text}{'' if unlimited else ', and CAP_IPC_LOCK lifts it'}", **values)
    do = "start the container with --ulimit memlock=-1 or --cap-add IPC_LOCK (systemd: LimitMEMLOCK=infinity)"
    if limits.memlock_bytes < _MEMLOCK_MIN:
        costs = "no pool can be registered with the RDMA devices: data planes do not start, or read over tcp"
        return broken(MEMLOCK, text, costs=costs, do=do, **values)
    costs = "pools larger than this cannot be registered with the RDMA devices"
    return slow(MEMLOCK, text, costs=costs, do=do, **values)


def _descriptors(limits: Limits) -> Finding:
    if limits.descriptors == resource.RLIM_INFINITY or limits.descriptors >= DESCRIPTORS_MIN:
        return ok(DESCRIPTORS, f"{limits.descriptors} per process", descriptors=limits.descriptors)
    return broken(
        DESCRIPTORS,
        f"{limits.descriptors} per process",
        costs=f"below {DESCRIPTORS_MIN} a busy control or data plane can take no further connections",
        do="raise it: LimitNOFILE, or --ulimit nofile=65536",
        descriptors=limits.descriptors,
    )
