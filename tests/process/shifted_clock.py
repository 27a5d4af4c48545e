"""Child processes whose wall clock jumps, while everybody else's stays."""

import os
import shlex
import struct
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")
_SECONDS = struct.Struct("=q")


class ShiftedClock:
    """The wall clock of all processes that are started from now on."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch) -> None:
        library, self._file = folder / "shifted_clock.so", folder / "shift"
        self._file.write_bytes(_SECONDS.pack(0))
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        command = [*compiler, "-x", "c", "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
        subprocess.run(command, check=True, timeout=60)  # noqa: S603 - the compiler that builds the native core
        environment.setenv("LD_PRELOAD", str(library))
        environment.setenv("SHIFTED_CLOCK", str(self._file))

    def jump(self, seconds: int) -> None:
        """Let it be wrong by so much from now on."""
        with self._file.open("r+b") as file:
            file.write(_SECONDS.pack(seconds))
