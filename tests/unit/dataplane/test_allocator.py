"""Memory that was freed is used again."""

import subprocess
import sys

_COUNT_FAULTS = """
import resource
import numpy as np
from kvferry_dataplane.allocator import keep_freed_memory
assert keep_freed_memory()
np.ones(1 << 20, dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    np.ones(1 << 20, dtype=np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_arrays_of_a_megabyte_cause_no_page_faults_once_one_was_freed() -> None:
    """A hundred arrays made one after the other touch the pages of the first."""
    ran = subprocess.run([sys.executable, "-c", _COUNT_FAULTS], capture_output=True, text=True, check=True)  # noqa: S603 - this interpreter
    assert 256 > int(ran.stdout)
