"""Shared host memory: an anonymous file that its owner passes to others as a descriptor."""

import errno
import fcntl
import mmap
import os
from dataclasses import dataclass

from kvferry.core.errors import ConfigInvalid, PoolTooLarge, TransportFailed
from kvferry.device.huge_pages import (
    HUGE_PAGE_BYTES,
    address_of,
    advise_huge_pages,
    huge_mapped_bytes,
    touch_first_huge_page,
)
from kvferry.device.memory_limits import available_memory_bytes

_NO_HUGE_PAGES = (errno.ENOMEM, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """A memfd of ``size_bytes``, mapped for reading and writing."""

    descriptor: int
    mapping: mmap.mmap
    size_bytes: int
    is_reserved_huge: bool
    """Whether all of it lies on huge pages that the operator reserved."""
    huge_page_refusal: str
    """Why there are no huge pages; empty where there are."""

    @property
    def huge_page_bytes(self) -> int:
        """Bytes that lie on huge pages now. Transparent ones come with the first touch, so that it grows with use."""
        return self.size_bytes if self.is_reserved_huge else huge_mapped_bytes(self.mapping)

    @property
    def address(self) -> int:
        """Where it is mapped in this process."""
        return address_of(self.mapping)

    def close(self) -> None:
        """Unmap and close. No view of the mapping may be left."""
        self.mapping.close()
        os.close(self.descriptor)


def create_shared_memory(name: str, size_bytes: int, *, field: str = "pool_bytes", tail_bytes: int = 0) -> SharedMemory:
    """Make and map shared memory of ``size_bytes``, on huge pages where the system grants them. The content is zero.

    ``tail_bytes`` are added to what was asked for; errors do not count them.

    Reserved huge pages are tried first (all of the memory lies on them then), transparent ones after that.

    The descriptor is sealed against changes of its size, so that whoever it is passed to cannot truncate the memory
    under its owner.

    Raises:
        ConfigInvalid: ``size_bytes`` is not positive; names ``field``.
        PoolTooLarge: the memory available is smaller; names ``field`` and both values.
    """
    if size_bytes <= 0:
        raise ConfigInvalid.of_field(field, size_bytes, "must be positive")
    _require_available(field, size_bytes, tail_bytes)
    whole_bytes = size_bytes + tail_bytes
    try:
        descriptor, mapping = _create(name, whole_bytes, os.MFD_HUGETLB)
    except OSError as error:
        if error.errno not in _NO_HUGE_PAGES:
            raise _creation_failed(field, size_bytes, error) from error
        refusal = f"reserved huge pages: {os.strerror(error.errno)}"
    except _NotAligned:
        refusal = f"reserved huge pages: the size is no multiple of {HUGE_PAGE_BYTES}"
    else:
        return SharedMemory(descriptor, mapping, whole_bytes, is_reserved_huge=True, huge_page_refusal="")
    try:
        descriptor, mapping = _create(name, whole_bytes, 0)
    except OSError as error:
        raise _creation_failed(field, size_bytes, error) from error
    refused = _advise_and_look(mapping)
    return SharedMemory(
        descriptor,
        mapping,
        whole_bytes,
        is_reserved_huge=False,
        huge_page_refusal=f"{refusal}; {refused}" if refused else "",
    )


def _advise_and_look(mapping: mmap.mmap) -> str:
    """Ask for transparent huge pages and see whether the first is granted; why not, or an empty string."""
    refused = advise_huge_pages(mapping)
    if refused:
        return refused
    touch_first_huge_page(mapping)
    return "" if huge_mapped_bytes(mapping) else "transparent huge pages were asked for and not granted"


def map_shared_memory(descriptor: int, size_bytes: int, *, writable: bool = True) -> mmap.mmap:
    """Map a descriptor received from the memory's owner, by huge pages where the owner's memory lies on them.

    Raises:
        TransportFailed: the descriptor is smaller than ``size_bytes`` or cannot be mapped.
    """
    _require_size(descriptor, size_bytes)
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        mapping = mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, access)
    except (OSError, ValueError) as error:
        raise TransportFailed(f"mapping {size_bytes} bytes: {error}") from error
    # What the memory lies on is the owner's to report. Here it is asked for, in case this process touches it first.
    advise_huge_pages(mapping)
    return mapping


def require_sealed(descriptor: int, size_bytes: int) -> None:
    """Check that a descriptor holds ``size_bytes`` and that nobody can make it hold less.

    What is mapped from it can then be read without the fear that its owner truncates it meanwhile, which would kill
    this process.

    Raises:
        TransportFailed: it is no memfd, can be truncated, or is too small.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise TransportFailed(f"the descriptor is not of sealed memory: {error.strerror}") from error
    if not seals & fcntl.F_SEAL_SHRINK:
        raise TransportFailed("the descriptor's memory can be truncated")
    # Only after the seal is known to be there does the size stay what it is.
    _require_size(descriptor, size_bytes)


def reopen_read_only(descriptor: int) -> int:
    """A second descriptor of the same memory through which nobody can write."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def _require_size(descriptor: int, size_bytes: int) -> None:
    held = os.fstat(descriptor).st_size
    if held < size_bytes:
        raise TransportFailed(
            f"the descriptor holds {held} bytes, {size_bytes} were offered",
            metadata={"field": "pool_bytes", "value": str(size_bytes)},
        )


class _NotAligned(Exception):
    """The size does not fill whole huge pages."""


def _create(name: str, size_bytes: int, extra_flags: int) -> tuple[int, mmap.mmap]:
    if extra_flags & os.MFD_HUGETLB and size_bytes % HUGE_PAGE_BYTES:
        raise _NotAligned
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | extra_flags)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        # Huge pages are reserved by mapping them: only now is it known whether there are enough.
        return descriptor, mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED)
    except BaseException:
        os.close(descriptor)
        raise


def _require_available(field: str, size_bytes: int, tail_bytes: int) -> None:
    available = available_memory_bytes()
    if size_bytes + tail_bytes > available:
        raise PoolTooLarge(
            f"{field}={size_bytes}: only {available} bytes of memory are available",
            metadata={"field": field, "value": str(size_bytes), "available_bytes": str(available)},
        )


def _creation_failed(field: str, size_bytes: int, error: OSError) -> PoolTooLarge:
    return PoolTooLarge(
        f"{field}={size_bytes}: {error.strerror}",
        metadata={"field": field, "value": str(size_bytes), "available_bytes": str(available_memory_bytes())},
    )
