"""Threads that nobody needs are not started."""

import subprocess
import sys

import pytest

COUNT = """
import os, runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
import numpy
print(len(os.listdir("/proc/self/task")), os.environ["OPENBLAS_NUM_THREADS"])
"""


@pytest.mark.parametrize("module", ["kvferry_control", "kvferry_dataplane"])
@pytest.mark.parametrize(("said", "threads"), [("", 1), ("2", 2)])
def test_numpy_starts_no_threads(module: str, said: str, threads: int) -> None:
    """Whatever the number of cores; what the user set goes before."""
    environment = {"PATH": "/usr/bin:/bin"} | ({"OPENBLAS_NUM_THREADS": said} if said else {})
    command = [sys.executable, "-c", COUNT.replace("sys.argv[0]", repr(module))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    assert [str(threads), said or "1"] == done.stdout.splitlines()[-1].split()
