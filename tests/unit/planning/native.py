"""The native core as an executor of plans."""

from collections.abc import Sequence
from functools import cache

from kvferry.device.copying import Copies, Window
from kvferry.device.native import HostCopier, Tuning
from tests.unit.planning.reference import Pool

WAIT_S = 60.0


@cache
def _copier() -> HostCopier:
    # Threads, streams and chunks as a large job would have them; most plans of the tests are tiny.
    return HostCopier(2, tuning=Tuning(inline_bytes_max=512, stream_bytes_min=1024, chunk_bytes_max=300))


def run(copies: Sequence[Copies], source: Pool, destination: Pool) -> None:
    """Do what plans or region copies say; the core checks that they stay inside the pools."""
    job = _copier().submit(
        Window(source.ctypes.data, source.nbytes), Window(destination.ctypes.data, destination.nbytes), copies
    )
    assert job.wait(WAIT_S)
    assert sum(copy.total_bytes for copy in copies) == job.copied_bytes
