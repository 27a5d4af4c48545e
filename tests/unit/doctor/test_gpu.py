"""What GPUs, driver and machine mean for each other."""

import pytest

from kvferry.doctor import gpu
from kvferry.doctor.child import Answer
from kvferry.doctor.findings import Status

BARE = gpu.Machine(has_rdma=False, peer_module="", own_namespaces=())
RDMA = gpu.Machine(has_rdma=True, peer_module="", own_namespaces=())


def gpus_of(*peers: tuple[int, ...], links: int = 18, **values: object) -> gpu.Gpus:
    """GPUs that reach each other so, as read from a child."""
    answer = {
        "driver": "580.1",
        "gpus": [{"name": "H200", "nvlinks": links, "nvlink_peers": list(reached)} for reached in peers],
        "cuda_error": "",
        "ipc_error": "",
        "dmabuf": True,
        "gpudirect": True,
        **values,
    }
    return gpu.read(Answer(answer, "", ""))


def statuses(found: gpu.Gpus, machine: gpu.Machine = BARE) -> list[str]:
    """Of the driver, CUDA IPC, GPUDirect and NVLink."""
    return [finding.status.value for finding in gpu.judge(found, machine)]


@pytest.mark.parametrize(
    ("found", "machine", "expected"),
    [
        (gpus_of(()), BARE, ["OK", "OK", "NONE", "NONE"]),
        (gpus_of((1,), (0,)), RDMA, ["OK", "OK", "OK", "OK"]),
        (gpus_of((1,), (0,), dmabuf=False), RDMA, ["OK", "OK", "SLOW", "OK"]),
        (gpus_of((1,), (0,), dmabuf=False), gpu.Machine(True, "nvidia_peermem", ()), ["OK", "OK", "OK", "OK"]),
        (gpus_of((), (), links=0), BARE, ["OK", "OK", "NONE", "NONE"]),
        (gpus_of((), ()), BARE, ["OK", "OK", "NONE", "SLOW"]),
        (gpus_of((), ipc_error="cuIpcOpenMemHandle: CUDA_ERROR_NOT_SUPPORTED"), BARE, ["OK", "BROKEN", "NONE", "NONE"]),
        (gpus_of((), cuda_error="no bindings"), BARE, ["BROKEN", "NONE", "NONE", "NONE"]),
        (gpus_of(), BARE, ["NONE"] * 4),
    ],
)
def test_gpus_are_judged_by_what_is_around(found: gpu.Gpus, machine: gpu.Machine, expected: list[str]) -> None:
    """GPUDirect matters with RDMA, NVLink with several GPUs that have links."""
    assert expected == statuses(found, machine)


def test_cuda_ipc_between_containers_is_named() -> None:
    """In namespaces of a container the finding says who has to share them."""
    ipc = gpu.judge(gpus_of(()), gpu.Machine(False, "", ("ipc", "pid")))[1]
    assert "IPC and PID of a container" in ipc.found


def test_no_gpu_is_no_fault_and_a_gpu_without_its_library_is() -> None:
    """The kernel's device node tells a machine without a GPU from a container without the driver's files."""
    assert {Status.NONE} == {finding.status for finding in gpu.judge_absence("no library", has_device_node=False)}
    (finding,) = gpu.judge_absence("driver=libnvidia-ml.so.1: cannot be loaded", has_device_node=True)
    assert (Status.BROKEN, True) == (finding.status, "--gpus" in finding.do)
