"""The two extensions in one process, as in a data plane of direct UCX."""

import subprocess
import sys

import pytest

_BOTH = """
import numpy as np
from kvferry.core.errors import InvalidArgument
import kvferry.device.{first}
import kvferry.device.{second}
from kvferry.device.copying import Window
from kvferry.device.native import digest_host
from tests.unit.checksums.test_digest import small_region
from dataclasses import replace

region, memory = small_region()
window = Window(memory.ctypes.data, memory.nbytes)
try:
    digest_host(window, replace(region, bases=np.array([1 << 40])), 1)
except InvalidArgument as error:
    print(error.metadata["field"])
"""


@pytest.mark.parametrize(("first", "second"), [("native", "ucx"), ("ucx", "native")])
def test_an_error_of_one_is_none_of_the_other(first: str, second: str) -> None:
    """Whichever is loaded first, what the copy core refuses comes out as its own error, and so as kvferry's."""
    command = [sys.executable, "-c", _BOTH.format(first=first, second=second)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    assert "bases" == done.stdout.strip()
