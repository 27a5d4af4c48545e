"""What the tests on a GPU share; all are skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry.device.cuda import CudaDevice, open_device
from kvferry.device.cuda_copy import CudaCopier


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cuda)


@pytest.fixture(scope="session")
def device() -> CudaDevice:
    """The first device."""
    try:
        return open_device(0)
    except ConfigInvalid as error:
        pytest.skip(f"no GPU: {error.message}")


@pytest.fixture(scope="session", params=["same", "peer"])
def source_device(request: pytest.FixtureRequest, device: CudaDevice) -> CudaDevice:
    """Where memory lies that the first device copies from: on itself, or on the second one."""
    if request.param == "same":
        return device
    peer = second_device()
    device.reach(peer)
    return peer


def second_device() -> CudaDevice:
    """The second device; skips the test where there is none."""
    try:
        return open_device(1)
    except ConfigInvalid as error:
        pytest.skip(f"no second GPU: {error.message}")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compiled kernels are kept for all tests."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def copier(device: CudaDevice, kernels: Path) -> Iterator[CudaCopier]:
    """A copier with all of the device."""
    made = CudaCopier(device, sm_count_max=None, cache_directory=kernels)
    yield made
    made.close()
