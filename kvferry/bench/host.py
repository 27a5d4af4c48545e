"""What a benchmark ran on."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")
_DRIVER = Path("/proc/driver/nvidia/version")


def host_info(settings: Mapping[str, str]) -> dict[str, object]:
    """CPU, GPU, versions, and the transport ``settings`` in effect, for JSON."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": cpu_model(_CPU_INFO.read_text(encoding="utf-8", errors="replace")),
        "kernel": platform.release(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "gpu_driver": _driver(),
        "nixl": _version("nixl"),
        "mooncake": _version("mooncake-transfer-engine-non-cuda") or _version("mooncake-transfer-engine"),
        "settings": dict(settings),
    }


def cpu_model(cpuinfo: str) -> str:
    """The model name in the text of ``/proc/cpuinfo``, or the machine's architecture where there is none."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _driver() -> str | None:
    try:
        first, _, _ = _DRIVER.read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        return None
    return first.partition(":")[2].strip()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
