"""A bound that several sources share."""

from hypothesis import given, settings, strategies as st

from kvferry_dataplane.shared_bound import SharedBound

SOURCES = ("a", "b", "c")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 1000),
    st.sampled_from([0.5, 1.0, 4.0]),
    st.lists(st.tuples(st.sampled_from(SOURCES), st.integers(1, 300), st.booleans()), max_size=60),
)
def test_the_bound_holds(limit: int, alpha: float, events: list[tuple[str, int, bool]]) -> None:
    """Whoever takes only where there is room never gets the total beyond the bound, and what is given back is free."""
    bound, held = SharedBound(limit, alpha), dict.fromkeys(SOURCES, 0)
    for source, amount, takes in events:
        if takes and bound.has_room(source, amount):
            bound.take(source, amount)
            held[source] += amount
        elif not takes and held[source]:
            bound.give_back(source, held[source])
            held[source] = 0
        assert (sum(held.values()), held[source]) == (bound.total, bound.held(source))
        assert bound.total <= limit


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(100, 5000))
def test_greedy_sources_leave_room(greedy: int, limit: int) -> None:
    """However much some sources want, another one finds its part of the bound free."""
    bound = SharedBound(limit, 1.0)
    for turn in range(2 * limit):
        source = f"greedy-{turn % greedy}"
        if bound.has_room(source, 1):
            bound.take(source, 1)
    room = 0
    while bound.has_room("late", 1):
        bound.take("late", 1)
        room += 1
    assert room >= limit // (2 * (1 + greedy)) - 1


def test_one_that_is_alone_has_most() -> None:
    """With nobody else there, a source gets its part of all: half with a factor of 1, four fifths with 4."""
    for alpha, expected in ((1.0, 50), (4.0, 80)):
        bound = SharedBound(100, alpha)
        while bound.has_room("a", 1):
            bound.take("a", 1)
        assert expected == bound.total


def test_a_small_bound_can_be_used() -> None:
    """Of a bound of few, all can be had."""
    bound = SharedBound(2, 4.0)
    bound.take("a", 1)
    assert bound.has_room("a", 1)
    bound.take("a", 1)
    assert not bound.has_room("b", 1)
