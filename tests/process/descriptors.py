"""What a running process holds open; and taking away from it what the system grants."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def no_descriptors(pid: int) -> Iterator[None]:
    """Inside, a process of this user can open no descriptor beyond those that it holds."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def open_descriptors(pid: int) -> list[str]:
    """What the descriptors of a running process refer to. Those that are closed meanwhile are left out."""
    targets = []
    for descriptor in Path("/proc", str(pid), "fd").iterdir():
        with suppress(FileNotFoundError):
            targets.append(str(descriptor.readlink()))
    return targets
