"""Huge pages for shared memory: asking the kernel for transparent ones, and seeing what it granted."""

import mmap
from pathlib import Path

import numpy as np

HUGE_PAGE_BYTES = 2 << 20

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_GRANTING = frozenset({"advise", "always", "force", "within_size"})


def advise_huge_pages(mapping: mmap.mmap, setting: Path = _SETTING) -> str:
    """Ask for transparent huge pages under what is touched from now on; why there are none, or an empty string.

    An empty string promises nothing: see :func:`huge_mapped_bytes`.
    """
    if len(mapping) < HUGE_PAGE_BYTES:
        return f"{len(mapping)} bytes do not fill a huge page"
    try:
        text = setting.read_text()
    except OSError as error:
        return f"transparent huge pages: {setting}: {error.strerror}"
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen not in _GRANTING:
        return f"transparent huge pages of shared memory are set to '{chosen}'"
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        return f"transparent huge pages: {error.strerror}"
    return ""


def touch_first_huge_page(mapping: mmap.mmap) -> None:
    """Have the kernel decide about the first place where a huge page may lie. The memory's content stays as it is."""
    first = -address_of(mapping) % HUGE_PAGE_BYTES
    if first < len(mapping):
        mapping[first] = mapping[first]


def huge_mapped_bytes(mapping: mmap.mmap, smaps: Path = Path("/proc/self/smaps")) -> int:
    """How much of a mapping of shared memory lies on transparent huge pages by now: pages come when first touched."""
    start = address_of(mapping)
    end = start + len(mapping)
    found_kib, is_inside = 0, False
    for line in smaps.read_text().splitlines():
        head, *rest = line.split()
        if head.endswith(":"):
            if is_inside and head in {"ShmemPmdMapped:", "FilePmdMapped:"}:
                found_kib += int(rest[0])
        else:
            low, _, high = head.partition("-")
            is_inside = int(low, 16) < end and int(high, 16) > start
    return found_kib * 1024


def address_of(mapping: mmap.mmap) -> int:
    """Where it is mapped in this process."""
    return int(np.frombuffer(mapping, dtype=np.uint8).ctypes.data)
