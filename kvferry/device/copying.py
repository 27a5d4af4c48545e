"""What every copier does: copy what a plan says from one mapped window of memory into another."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvferry.core.planning.copies import CopyPlan, StridedCopy

Copies = CopyPlan | StridedCopy


@dataclass(frozen=True, slots=True)
class Window:
    """Memory that is mapped in this process; plans name it by offsets from its start."""

    address: int
    size_bytes: int


class CopyJob(Protocol):
    """Copies under way. Any thread may ask."""

    @property
    def done(self) -> bool:
        """Whether nothing of it touches either window any more: all was copied, or it was cancelled.

        Raises:
            TransportFailed: the device failed.
        """
        ...

    @property
    def copied_bytes(self) -> int:
        """Bytes copied; all of them if the job is done and was not cancelled before."""
        ...

    @property
    def device_seconds(self) -> float:
        """How long a device was at it, on its own clock, once the job is done; 0 where none measures."""
        return 0.0

    def wait(self, timeout_s: float) -> bool:
        """Whether it was done within the time. It is asked again and again: short copies end sooner than one sleeps.

        Raises:
            TransportFailed: the device failed.
        """
        until = time.monotonic() + timeout_s
        while not self.done:
            if time.monotonic() >= until:
                return False
        return True

    def cancel(self) -> None:
        """Ask for an early end. The job is done soon after: between two pieces."""
        ...


class Copier(Protocol):
    """Copies on threads or streams of its own."""

    @property
    def wakes(self) -> bool:
        """Whether the end of a job is signalled on the descriptor that the copier was made with: then no one polls."""
        ...

    def submit(
        self,
        source: Window,
        destination: Window,
        copies: Sequence[Copies],
        *,
        priority: int = 0,
        silent: bool = False,
    ) -> CopyJob:
        """Start copying; higher priorities first. Offsets are relative to the windows. The end of a ``silent`` job is
        not signalled.

        Raises:
            InvalidArgument: a piece leaves a window; names it. Nothing was copied.
            ResourceExhausted: too many jobs are under way.
        """
        ...

    def close(self) -> None:
        """Cancel what is under way, wait for its end and release everything."""
        ...
