"""The switch that lets late bytes through."""

import pytest

from kvferry_dataplane.reads.unsafe import CONFIRMATION, SKIP_ROLLOVER, skips_rollover


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, False), ({SKIP_ROLLOVER: "1"}, False), ({SKIP_ROLLOVER: ""}, False), ({SKIP_ROLLOVER: CONFIRMATION}, True)],
)
def test_it_takes_one_value_to_be_unsafe(environment: dict[str, str], expected: bool) -> None:
    """Nothing but the one value that says what it does switches the rollover off."""
    assert expected == skips_rollover(environment)
