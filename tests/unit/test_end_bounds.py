"""The bounds after a deadline, each of which waits for the one before."""

from kvferry.sdk.pulls import GRACE_S
from kvferry_control.transfers.manager import SETTLE_BOUND_S
from kvferry_dataplane.reads.request import ReadBounds

PROMISE_S = 1.0
LAG_S = 0.2
"""What an event loop of a busy machine may be late."""
DESTRUCTION_S = 0.2
"""Of a NIXL agent with reads that do not end."""


def test_every_bound_leaves_room_for_a_busy_machine() -> None:
    """A data plane confirms well before control gives up, control before the engine, and the engine before a second."""
    bounds = ReadBounds()
    assert bounds.settle_seconds + bounds.retire_seconds + DESTRUCTION_S + LAG_S <= SETTLE_BOUND_S
    assert SETTLE_BOUND_S + LAG_S / 2 <= GRACE_S
    assert GRACE_S + LAG_S <= PROMISE_S
