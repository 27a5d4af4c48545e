"""Two minutes of chaos."""

import pytest

from tests.chaos.__main__ import short_plan
from tests.chaos.run import chaos
from tests.process.launch.capabilities import needs_namespaces

SEED = 5


@needs_namespaces
@pytest.mark.timeout(240)
async def test_nothing_hangs_and_nothing_corrupts() -> None:
    """After one fault of each kind under load: every transfer has ended, in time, no byte was wrong or late, every pair
    pulls again, and no process holds more than before."""
    report = await chaos(short_plan(SEED))
    report.show()
    assert [] == report.failures
