"""Costs before the first read."""

from kvferry_dataplane.packed.calibration import NIXL_OVER_SOCKETS, measured_packed_cost
from kvferry_dataplane.packed.costs import PairCosts


def test_on_sockets_a_measured_stream_beats_nixl_for_small_pieces_only() -> None:
    """What this machine measures agrees with what the packed path is for: 4 KiB pieces are packed, one is not."""
    costs = PairCosts(NIXL_OVER_SOCKETS, measured_packed_cost())
    assert costs.packed.seconds(16384, 64 << 20) < costs.nixl.seconds(16384, 64 << 20)
    assert not costs.verdict(1, 4096).packed
