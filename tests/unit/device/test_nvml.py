"""What the management library says is read as it is meant, from a stand-in with its functions."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from kvferry.core.errors import ConfigInvalid, TransportFailed
from kvferry.device.nvml import Gpu, Gpus, read_gpus

SOURCE = Path(__file__).with_name("stand_in_nvml.c")


def stand_in(folder: Path, *flags: str) -> str:
    """The compiled stand-in."""
    library = folder / "libnvidia-ml.so.1"
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-x", "c", *flags, "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, str(SOURCE)], check=True, timeout=60)  # noqa: S603 - the compiler that builds the native core
    return str(library)


def test_links_and_who_they_reach_are_read(tmp_path: Path) -> None:
    """Links that are down, that the GPU has not, and GPUs without NVLink do not count."""
    joined = [Gpu("NVIDIA H200", 2, (1,)), Gpu("NVIDIA H200", 2, (0,)), Gpu("NVIDIA L4", 0, ())]
    assert Gpus("580.159.04", tuple(joined)) == read_gpus(stand_in(tmp_path))


def test_its_errors_are_named(tmp_path: Path) -> None:
    """The function and the library's words."""
    with pytest.raises(TransportFailed, match="nvmlDeviceGetName: GPU is lost"):
        read_gpus(stand_in(tmp_path, "-DLOST"))


def test_without_a_driver_there_is_none() -> None:
    """A library that is not there is named."""
    with pytest.raises(ConfigInvalid, match=r"driver=libnvidia-ml-none\.so: cannot be loaded"):
        read_gpus("libnvidia-ml-none.so")
