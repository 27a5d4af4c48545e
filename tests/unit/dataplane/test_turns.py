"""Turns between priorities and sources, in virtual time."""

from collections import Counter

from hypothesis import given, settings, strategies as st

from kvferry_dataplane.reads.turns import FairShares, Turns

SOURCES = ("a", "b", "c", "d")
SIZES = st.integers(1, 1 << 20)
NOBODY: tuple[int, ...] = ()


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(SOURCES), st.lists(SIZES, min_size=12, max_size=12), min_size=2))
def test_sources_that_always_ask_get_equal_shares(batches: dict[str, list[int]]) -> None:
    """While two sources have something to ask for, what they were served differs by at most one batch of each."""
    shares, served = FairShares(), Counter[str]()
    left = {source: list(sizes) for source, sizes in batches.items()}
    while all(left.values()):
        source = shares.first(list(left))
        size = left[source].pop(0)
        shares.served(source, size)
        served[source] += size
        for one in left:
            for other in left:
                assert abs(served[one] - served[other]) <= max(batches[one]) + max(batches[other])


@settings(max_examples=60, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=30), SIZES)
def test_a_source_that_was_idle_is_owed_nothing(before: list[int], size: int) -> None:
    """A source that comes late shares from then on; it may not catch up on what it did not ask for."""
    shares = FairShares()
    for batch in before:
        shares.served("busy", batch)
    run = 0
    while shares.first(["busy", "late"]) == "late":
        shares.served("late", size)
        run += 1
        assert run * size <= before[-1] + size


def test_many_sources_leave_nothing_behind() -> None:
    """Sources that have gone take no memory for ever."""
    shares = FairShares()
    for number in range(5_000):
        shares.served(f"s{number}", 1)
    assert len(shares._finish) <= 512


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(-3, 3), st.sampled_from(SOURCES)), min_size=1))
def test_the_highest_priority_comes_first(claims: set[tuple[int, str]]) -> None:
    """As long as nobody has waited too long, no claim is served while one of a higher priority asks."""
    turns = Turns(1.0)
    turns.begin(claims, {priority for priority, _ in claims}, 0.0)
    while claims:
        claim = turns.next(claims, NOBODY, 0.5)
        assert claim is not None
        assert claim[0] == max(priority for priority, _ in claims)
        turns.served(claim, 100, 0.5)
        claims.remove(claim)


def test_lower_priorities_ask_for_nothing_while_a_higher_one_is_read() -> None:
    """What a higher priority has in flight keeps lower ones back, until it has not moved for the patience."""
    turns = Turns(1.0)
    claims = {(0, "a"): None}
    turns.served((5, "b"), 100, 0.0)
    turns.moved(5, 0.4)
    for moment, expected in ((0.5, None), (1.3, None), (1.5, (0, "a"))):
        # A round in which the lower one asked for nothing else, so that it has not waited itself.
        turns.begin((), {0, 5}, moment)
        turns.begin(claims, {0, 5}, moment)
        assert expected == turns.next(claims, {5}, moment)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.sampled_from(SOURCES)), min_size=2, max_size=12, unique=True))
def test_no_priority_waits_for_ever(asking: list[tuple[int, str]]) -> None:
    """However busy higher priorities are, each gets a batch in every patience and a step for each priority there is."""
    turns, step, patience = Turns(1.0), 0.01, 1.0
    levels = {priority for priority, _ in asking}
    last = dict.fromkeys(levels, 0.0)
    now = 0.0
    for _ in range(600):
        now += step
        turns.begin(asking, levels, now)
        claim = turns.next(asking, levels, now)
        if claim is None:
            continue
        turns.served(claim, 100, now)
        last[claim[0]] = now
        assert min(last.values()) >= now - patience - (len(levels) + 1) * step


def test_who_is_kept_back_is_looked_at_again_in_time() -> None:
    """The next change is the moment at which a priority that is kept back has waited long enough."""
    turns = Turns(1.0)
    turns.served((5, "b"), 100, 0.0)
    turns.begin([(0, "a")], {0, 5}, 0.25)
    assert turns.next([(0, "a")], {5}, 0.25) is None
    turns.moved(5, 0.75)
    assert 1.25 == turns.next_change(0.75)
    assert (0, "a") == turns.next([(0, "a")], {5}, 1.25)
    turns.begin([], {0, 5}, 1.5)
    assert turns.next_change(1.5) is None
