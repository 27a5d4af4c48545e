"""Asks driver and devices what they can do. Writes one JSON object; see :mod:`kvferry.doctor.gpu`.

``gpu_child open HANDLE UUID WORD`` is the other process of the try of CUDA IPC.
"""

import json
import subprocess
import sys
from typing import Any

from kvferry.core.errors import KvferryError
from kvferry.device import nvml
from kvferry.device.cuda import CudaDevice, open_device, open_device_by_uuid

_BYTES = 2 << 20
_WORD = b"kvferry!"
_OPEN_S_MAX = 8.0


def main() -> None:
    """Look, or open what another process of this kind exported."""
    answer = _open(*sys.argv[2:]) if sys.argv[1:2] == ["open"] else _look()
    sys.stdout.write(json.dumps(answer) + "\n")


def _look() -> dict[str, Any]:
    answer: dict[str, Any] = {"driver_error": "", "cuda_error": "", "driver": "", "gpus": [], "ipc_error": ""}
    try:
        found = nvml.read_gpus()
    except KvferryError as error:
        return answer | {"driver_error": str(error)}
    answer["driver"] = found.driver_version
    answer["gpus"] = [
        {"name": gpu.name, "nvlinks": gpu.nvlink_count, "nvlink_peers": list(gpu.nvlink_peers)} for gpu in found.gpus
    ]
    try:
        device = open_device(0)
        answer["dmabuf"] = bool(device.attribute("DMA_BUF_SUPPORTED"))
        answer["gpudirect"] = bool(device.attribute("GPU_DIRECT_RDMA_SUPPORTED"))
    except KvferryError as error:
        return answer | {"cuda_error": str(error)}
    return answer | {"ipc_error": _try_ipc(device)}


def _try_ipc(device: CudaDevice) -> str:
    """Why another process cannot map memory of this one; empty if it can."""
    try:
        address = device.allocate(_BYTES, field="probe_bytes")
        device.write(address, _WORD)
        handle = device.export_handle(address)
    except KvferryError as error:
        return str(error)
    command = [sys.executable, "-m", "kvferry.doctor.gpu_child", "open", handle.hex(), device.uuid.hex(), _WORD.hex()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_OPEN_S_MAX, check=True)  # noqa: S603
    except subprocess.SubprocessError as error:
        return f"the process that was to open it: {error}"
    finally:
        device.free(address)
    return str(json.loads(done.stdout.splitlines()[-1])["error"])


def _open(handle: str, uuid: str, word: str) -> dict[str, str]:
    try:
        device = open_device_by_uuid(bytes.fromhex(uuid))
        address = device.open_handle(bytes.fromhex(handle))
        arrived = device.read(address, len(word) // 2)
        device.close_handle(address)
    except KvferryError as error:
        return {"error": str(error)}
    return {"error": "" if arrived.hex() == word else f"it reads {arrived.hex()} and not {word}"}


if __name__ == "__main__":
    main()
