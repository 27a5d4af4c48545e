"""The kernels' source is packaged and compiles, where the run-time compiler is installed."""

from pathlib import Path

import pytest

from kvferry.core.errors import ConfigInvalid, TransportFailed
from kvferry.device.copy_kernels import KernelShape, kernel_source
from kvferry.device.cuda import compiler_version
from kvferry.device.cuda_program import compiled


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    """Skip without a run-time compiler."""
    pytest.importorskip("cuda.core")
    try:
        compiler_version()
    except ConfigInvalid as error:
        pytest.skip(error.message)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
def test_the_source_compiles(tmp_path: Path, architecture: str) -> None:
    """The kernels compile for old and new devices, and the structures have the sizes that the tables are written in."""
    image = compiled("copy.cu", kernel_source(), architecture, KernelShape().macros(), tmp_path)
    assert b"copy_plain" in image
    assert (architecture == "sm_90") == (b"copy_bulk" in image)


def test_an_error_of_the_source_is_told(tmp_path: Path) -> None:
    """What the compiler says is in the error."""
    with pytest.raises(TransportFailed, match="wrong_name"):
        compiled("copy.cu", "__global__ void f() { wrong_name(); }", "sm_90", {}, tmp_path)
