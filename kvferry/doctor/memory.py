"""Shared memory: /dev/shm, and huge pages under memory like a pool's."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.core.errors import KvferryError
from kvferry.device.huge_pages import HUGE_PAGE_BYTES
from kvferry.device.memfd import create_shared_memory
from kvferry.doctor.findings import Finding, Value, broken, ok, slow

SHM, HUGE_PAGES = "memory.shm", "memory.huge_pages"
AGENT_SHM_BYTES = 4_333_568
"""What each agent of UCX takes of /dev/shm, and goes without if it is full. Measured with NIXL 1.5.1."""
AGENTS = 4
"""A data plane's: serving, reading, staging, and one that is being given up."""
CONTAINER_SHM_BYTES = 64 << 20
"""What container runtimes give without being asked."""
_PROBE_BYTES = 2 * HUGE_PAGE_BYTES
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """The file system at /dev/shm. ``error`` says why there is none, or why nothing can be made there."""

    size_bytes: int
    free_bytes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class HugePages:
    """What memory made as a pool's is lies on."""

    granted_bytes: int
    are_reserved: bool
    refusal: str


async def look() -> Sequence[Finding]:
    """Both."""
    return [judge_shm(read_shm()), _huge_pages()]


def read_shm(path: Path = Path("/dev/shm")) -> SharedFiles:  # noqa: S108 - it is what is looked at
    """Sizes, and whether a file can be made."""
    try:
        sizes = os.statvfs(path)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        return SharedFiles(0, 0, f"{path}: {error.strerror}")
    return SharedFiles(sizes.f_frsize * sizes.f_blocks, sizes.f_frsize * sizes.f_bavail)


def judge_shm(shm: SharedFiles) -> Finding:
    """What /dev/shm means for UCX. Pools do not lie there."""
    values: dict[str, Value] = {
        "size_bytes": shm.size_bytes,
        "free_bytes": shm.free_bytes,
        "agent_bytes": AGENT_SHM_BYTES,
    }
    text = shm.error or f"{shm.free_bytes // _MIB} of {shm.size_bytes // _MIB} MiB are free"
    if shm.error or shm.free_bytes < AGENTS * AGENT_SHM_BYTES:
        return slow(
            SHM,
            text,
            costs="no pool lies there, but UCX finds no room for messages in shared memory and sends them another way,"
            " without a word; engines with NCCL may not start",
            do="give the container --shm-size=1g, or its pod an emptyDir of medium Memory at /dev/shm",
            **values,
        )
    if shm.size_bytes <= CONTAINER_SHM_BYTES:
        text += ": enough for data planes, whose pools do not lie there; an engine with NCCL wants --shm-size=1g"
    return ok(SHM, text, **values)


def _huge_pages() -> Finding:
    try:
        return judge_huge_pages(read_huge_pages())
    except KvferryError as error:
        return broken(
            HUGE_PAGES,
            f"no shared memory can be made: {error}",
            costs="no data plane with a pool in host memory starts",
            do="free memory, or raise the container's limit",
        )


def read_huge_pages() -> HugePages:
    """Make two huge pages of shared memory as a data plane makes its pool, and see what they lie on.

    Raises:
        KvferryError: there is not so much memory.
    """
    memory = create_shared_memory("kvferry-doctor", _PROBE_BYTES, field="probe_bytes")
    try:
        return HugePages(memory.huge_page_bytes, memory.is_reserved_huge, memory.huge_page_refusal)
    finally:
        memory.close()


def judge_huge_pages(pages: HugePages) -> Finding:
    """What a pool would lie on."""
    values: dict[str, Value] = {
        "granted": pages.granted_bytes > 0,
        "reserved": pages.are_reserved,
        "refusal": pages.refusal,
    }
    if pages.granted_bytes:
        kind = "reserved" if pages.are_reserved else "transparent"
        return ok(HUGE_PAGES, f"pools in host memory lie on {kind} huge pages", **values)
    return slow(
        HUGE_PAGES,
        f"pools in host memory lie on pages of 4 KiB ({pages.refusal})",
        costs="copies within the host take 5 to 16 % longer (measured); pools on a GPU lose nothing",
        do="echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled, or reserve them with vm.nr_hugepages",
        **values,
    )
