"""GPUs: the driver, memory shared between processes, the ways from GPU to network and from GPU to GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.doctor.child import Answer, ask
from kvferry.doctor.findings import Finding, Value, broken, none, ok, slow
from kvferry.doctor.namespaces import NAMES, read_namespaces
from kvferry_dataplane.config import has_rdma_devices

DRIVER, IPC, DIRECT, NVLINK = "gpu.driver", "gpu.cuda_ipc", "gpu.direct", "gpu.nvlink"
_NODE = Path("/dev/nvidiactl")
_PEER_MODULES = (Path("/sys/module/nvidia_peermem"), Path("/sys/module/nv_peer_mem"))
_NO_GPU = "no GPU"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as NVML shows it."""

    name: str
    nvlink_count: int
    nvlink_peers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Gpus:
    """What driver and devices said."""

    driver: str
    gpus: tuple[Gpu, ...]
    cuda_error: str
    """Why CUDA cannot be used; empty if it can."""
    ipc_error: str
    """Why another process cannot map a GPU's memory; empty if it can."""
    has_dmabuf: bool
    """Whether the driver hands out memory to network devices as dmabuf."""
    has_direct: bool
    """Whether the GPU lets network devices reach its memory."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is around the GPUs."""

    has_rdma: bool
    peer_module: str
    """The kernel module that gives RDMA devices the GPU's memory; empty without."""
    own_namespaces: tuple[str, ...]
    """Kinds of namespaces that are not the host's."""


async def look() -> Sequence[Finding]:
    """Ask in a process of its own: a driver may hang."""
    answer = await ask("kvferry.doctor.gpu_child")
    if answer.end:
        return [
            broken(
                DRIVER,
                f"the driver cannot be asked: {answer.end}",
                costs="no data plane can have its pool on a GPU",
                do="look into the kernel's log for messages of the driver (NVRM)",
            )
        ]
    if answer.values["driver_error"]:
        return judge_absence(answer.values["driver_error"], has_device_node=has_device_node())
    return judge(read(answer), read_machine())


def judge_absence(error: str, *, has_device_node: bool) -> list[Finding]:
    """What it means that the driver's library cannot be loaded."""
    if not has_device_node:
        return [none(name, _NO_GPU) for name in (DRIVER, IPC, DIRECT, NVLINK)]
    return [
        broken(
            DRIVER,
            f"there is a GPU, and {error}",
            costs="no data plane can have its pool on a GPU",
            do="start the container with the driver's libraries: --gpus all, or --device nvidia.com/gpu=all",
        )
    ]


def has_device_node() -> bool:
    """Whether the kernel's driver shows itself to this process."""
    return _NODE.exists()


def read(answer: Answer) -> Gpus:
    """The child's answer."""
    values = answer.values
    gpus = tuple(Gpu(gpu["name"], gpu["nvlinks"], tuple(gpu["nvlink_peers"])) for gpu in values["gpus"])
    direct = (bool(values.get("dmabuf")), bool(values.get("gpudirect")))
    return Gpus(values["driver"], gpus, values["cuda_error"], values["ipc_error"], *direct)


def read_machine() -> Machine:
    """Of this process."""
    module = next((path.name for path in _PEER_MODULES if path.exists()), "")
    initial = read_namespaces().is_initial
    return Machine(has_rdma_devices(), module, tuple(name for name in NAMES if not initial[name]))


def judge(gpus: Gpus, machine: Machine) -> list[Finding]:
    """What GPUs and machine mean for each other."""
    if not gpus.gpus:
        return [
            none(name, f"driver {gpus.driver} shows no GPU to this process") for name in (DRIVER, IPC, DIRECT, NVLINK)
        ]
    return [_driver(gpus), _ipc(gpus, machine), _direct(gpus, machine), _nvlink(gpus)]


def _driver(gpus: Gpus) -> Finding:
    names = ", ".join(gpu.name for gpu in gpus.gpus)
    values: dict[str, Value] = {"driver": gpus.driver, "gpus": [gpu.name for gpu in gpus.gpus]}
    if not gpus.cuda_error:
        return ok(DRIVER, f"driver {gpus.driver}: {names}", **values)
    return broken(
        DRIVER,
        f"driver {gpus.driver}: {names}; CUDA cannot be used: {gpus.cuda_error}",
        costs="no data plane can have its pool on a GPU",
        do="pip install 'kvferry[cuda]', in the release of CUDA that the driver serves",
        **values,
    )


def _ipc(gpus: Gpus, machine: Machine) -> Finding:
    own = " and ".join(name.upper() for name in machine.own_namespaces)
    values: dict[str, Value] = {"error": gpus.ipc_error, "own_namespaces": list(machine.own_namespaces)}
    if gpus.cuda_error:
        return none(IPC, "CUDA cannot be used", **values)
    if not gpus.ipc_error:
        text = "another process maps a GPU's memory and reads the right bytes"
        if own:
            text += f"; {own} of a container: processes of other containers have to share it"
        return ok(IPC, text, **values)
    return broken(
        IPC,
        f"another process cannot map a GPU's memory: {gpus.ipc_error}",
        costs="no engine can attach a pool on a GPU, and no data plane of this host can map it",
        do="run engine and data planes with --ipc=container:NAME --pid=container:NAME, and the same GPUs visible",
        **values,
    )


def _direct(gpus: Gpus, machine: Machine) -> Finding:
    values: dict[str, Value] = {
        "dmabuf": gpus.has_dmabuf,
        "gpudirect": gpus.has_direct,
        "peer_module": machine.peer_module,
    }
    if not machine.has_rdma:
        return none(DIRECT, "no RDMA devices that could reach a GPU's memory", **values)
    if gpus.has_direct and (gpus.has_dmabuf or machine.peer_module):
        way = machine.peer_module or "dmabuf"
        return ok(DIRECT, f"RDMA devices reach the GPU's memory by {way}", **values)
    return slow(
        DIRECT,
        "RDMA devices do not reach the GPU's memory: neither dmabuf nor nvidia_peermem",
        costs="every byte between hosts is copied through host memory on both sides",
        do="modprobe nvidia_peermem on the host, or take the open kernel modules of the driver, which have dmabuf",
        **values,
    )


def _nvlink(gpus: Gpus) -> Finding:
    values: dict[str, Value] = {
        "links": [gpu.nvlink_count for gpu in gpus.gpus],
        "peers": [list(gpu.nvlink_peers) for gpu in gpus.gpus],
    }
    if len(gpus.gpus) == 1:
        return none(NVLINK, f"one GPU, {gpus.gpus[0].nvlink_count} links up; it has no other to reach here", **values)
    others = len(gpus.gpus) - 1
    apart = [index for index, gpu in enumerate(gpus.gpus) if len(gpu.nvlink_peers) < others]
    if not apart:
        return ok(NVLINK, f"{len(gpus.gpus)} GPUs, each reaches all others by NVLink", **values)
    if not any(gpu.nvlink_count for gpu in gpus.gpus):
        return none(NVLINK, f"{len(gpus.gpus)} GPUs without NVLink: copies between them cross PCIe", **values)
    return slow(
        NVLINK,
        f"GPUs {', '.join(map(str, apart))} do not reach all others by NVLink, although links are up",
        costs="copies between those cross PCIe, at a tenth of the rate",
        do="place ranks that exchange KV on GPUs that NVLink joins; where all should, look at nvidia-fabricmanager",
        **values,
    )
