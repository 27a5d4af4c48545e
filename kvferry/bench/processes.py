"""CPU time of processes on this machine, as the kernel counts it."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_USER_FIELD = 11
"""Of the fields of ``/proc/PID/stat`` that follow the command's name; the system's time is the next one."""


@dataclass(frozen=True, slots=True)
class CpuSample:
    """What each process had used at one moment."""

    at_s: float
    used_s: Mapping[str, float]

    @classmethod
    def of(cls, pids: Mapping[str, int]) -> Self:
        """Sample processes by name. Raises FileNotFoundError if one has ended."""
        return cls(time.perf_counter(), {name: _cpu_seconds(pid) for name, pid in pids.items()})

    def since(self, earlier: "CpuSample") -> "CpuUse":
        """What was used between two samples."""
        used = {name: seconds - earlier.used_s[name] for name, seconds in self.used_s.items()}
        return CpuUse(self.at_s - earlier.at_s, used)


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU seconds by process over ``wall_s`` seconds."""

    wall_s: float
    used_s: Mapping[str, float]

    @property
    def total_s(self) -> float:
        """Of all processes together."""
        return sum(self.used_s.values())

    def share_of_core(self, name: str) -> float:
        """How much of one core a process used."""
        return self.used_s[name] / self.wall_s


def _cpu_seconds(pid: int) -> float:
    # The name may hold anything, also spaces and parentheses: what follows its last parenthesis is numbers.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return sum(map(int, fields[_USER_FIELD : _USER_FIELD + 2])) / _TICKS_PER_S
