"""What stands between processes of one host: namespaces, user ids and the rules of ptrace.

The local path maps the source's memory over a Unix socket and needs none of it for host memory. UCX's cma, over which
NIXL reads within a host, reads another process's memory by its process id.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.doctor.child import ask
from kvferry.doctor.findings import Finding, Value, broken, ok, slow

NAMESPACES, CMA, HOST = "namespaces.shared", "namespaces.cma", "namespaces.host"
NAMES = ("ipc", "pid")
# The kernel gives the first namespace of each kind a fixed number.
_INITIAL = {"ipc": 0xEFFFFFFF, "pid": 0xEFFFFFFC}
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Whether this process lives in the host's own namespace, of each kind."""

    is_initial: Mapping[str, bool]
    uid: int


@dataclass(frozen=True, slots=True)
class ProcessReads:
    """Whether one process of this user can read another one's memory, as cma does."""

    was_tried: bool
    error: str
    """Why it cannot, or was not tried; empty if it can."""
    ptrace_scope: int | None
    """Yama's rule; None where the kernel has none."""


async def look() -> Sequence[Finding]:
    """Namespaces, and a real read of another process's memory."""
    reads = await try_process_read()
    return [judge_host(_BOOT_ID), judge_namespaces(read_namespaces()), judge_reads(reads)]


def read_namespaces(folder: Path = Path("/proc/self/ns")) -> Namespaces:
    """The namespaces of this process."""
    return Namespaces({name: (folder / name).stat().st_ino == _INITIAL[name] for name in NAMES}, os.getuid())


def judge_host(boot_id: Path) -> Finding:
    """Whether data planes can tell that they share a host."""
    if boot_id.is_file() and boot_id.read_bytes().strip():
        return ok(HOST, "the kernel has an identity: data planes of this host recognise each other")
    return slow(
        HOST,
        f"{boot_id} cannot be read",
        costs="data planes do not map each other's memory: reads within the host go over the backend",
        do="mount /proc in the container as the runtime does by itself",
    )


def judge_namespaces(namespaces: Namespaces) -> Finding:
    """What own namespaces mean. That is no fault by itself: it depends on where the other data plane runs."""
    own = [name.upper() for name in NAMES if not namespaces.is_initial[name]]
    values: dict[str, Value] = {name: "host" if initial else "own" for name, initial in namespaces.is_initial.items()}
    if not own:
        text = "the host's IPC and PID namespaces: cma reaches data planes that run there with the same user id"
        return ok(NAMESPACES, f"{text} ({namespaces.uid})", uid=namespaces.uid, **values)
    kinds = " and ".join(own)
    return ok(
        NAMESPACES,
        f"{kinds} of a container: NIXL reads data planes of other containers over tcp and not cma, unless they run"
        f" with --ipc=container:NAME --pid=container:NAME and user id {namespaces.uid}; the local path does not need"
        " that for host memory, CUDA IPC does",
        uid=namespaces.uid,
        **values,
    )


async def try_process_read() -> ProcessReads:
    """Have a process read a word of another's memory."""
    answer = await ask("kvferry.doctor.cma_child")
    return ProcessReads(not answer.end, answer.end or str(answer.values["error"]), _ptrace_scope())


def _ptrace_scope() -> int | None:
    return int(_YAMA.read_text()) if _YAMA.exists() else None


def judge_reads(reads: ProcessReads) -> Finding:
    """What a refused read means."""
    values: dict[str, Value] = {"ptrace_scope": reads.ptrace_scope, "error": reads.error}
    if not reads.error:
        rule = "no Yama" if reads.ptrace_scope is None else f"ptrace_scope {reads.ptrace_scope}"
        return ok(CMA, f"a process can read another's memory where user ids are equal ({rule})", **values)
    costs = "NIXL and direct UCX read over tcp within the host; the local path does not need it"
    if not reads.was_tried:
        do = "look at the message: a process of this Python could not do its work"
        return broken(CMA, f"it could not be tried: {reads.error}", costs=costs, do=do, **values)
    scope = reads.ptrace_scope or 0
    do = (
        f"set kernel.yama.ptrace_scope to 0 (it is {scope}), or grant CAP_SYS_PTRACE"
        if scope >= 2
        else "allow process_vm_readv in the container's seccomp profile"
    )
    return slow(CMA, f"a process cannot read another's memory: {reads.error}", costs=costs, do=do, **values)
