"""Which way to read a plan."""

from kvferry_dataplane.packed.costs import PairCosts, WayCost

MIB = 1 << 20


def tcp() -> PairCosts:
    """Figures like those of a TCP network: NIXL costs 10 µs a piece, a stream hardly any."""
    return PairCosts(nixl=WayCost(50e-6, 10e-6, 1 / 2e9), packed=WayCost(200e-6, 0.5e-6, 1 / 2e9))


def test_many_small_pieces_are_packed() -> None:
    """What costs most by the piece is packed, and the choice names both estimates."""
    verdict = tcp().verdict(16384, 64 * MIB)
    assert verdict.packed
    assert "16384 pieces: packed 41.9 ms" in verdict.choice
    assert "nixl 197 ms" in verdict.choice


def test_a_choice_names_the_transport_that_there_is() -> None:
    """Without NIXL it is UCX that would have read the pieces, or that does."""
    assert "ucx 197 ms" in tcp().verdict(16384, 64 * MIB, "ucx").choice
    assert "1 pieces: ucx" in tcp().verdict(1, 4096, "ucx").choice


def test_one_piece_is_not_packed() -> None:
    """A single piece is read as it is."""
    assert not tcp().verdict(1, 4096).packed


def test_a_way_that_may_be_better_is_tried_once() -> None:
    """Where the estimates are close, each way is taken once; from then on what they took decides."""
    costs = tcp()
    assert "first time" in costs.verdict(64, 64 * MIB).choice
    taken = []
    for _ in range(4):
        packed = costs.verdict(64, 64 * MIB).packed
        taken.append(packed)
        costs.learn(64, 64 * MIB, 0.01 if packed else 0.02, packed=packed)
    assert {True, False} == set(taken[:2])
    assert [True, True] == taken[2:]


def test_costs_follow_what_reads_took() -> None:
    """A way that turns out much slower than estimated is left, and taken again when the other is worse still."""
    costs = tcp()
    costs.learn(16384, 64 * MIB, 0.6, packed=True)
    costs.learn(16384, 64 * MIB, 0.2, packed=False)
    assert not costs.verdict(16384, 64 * MIB).packed
    for _ in range(20):
        costs.learn(16384, 64 * MIB, 2.0, packed=False)
    assert costs.verdict(16384, 64 * MIB).packed


def test_one_strange_read_counts_with_a_bound() -> None:
    """A read that took absurdly long makes its way at most so much more expensive."""
    costs = tcp()
    costs.learn(16384, 64 * MIB, 0.042, packed=True)
    costs.learn(16384, 64 * MIB, 1e6, packed=True)
    assert costs.packed.factor < 6.0


def test_tiny_reads_teach_nothing() -> None:
    """A short read's time is mostly waiting, and changes no cost."""
    costs = tcp()
    costs.learn(1, 4096, 1.0, packed=True)
    assert 1.0 == costs.packed.factor
