"""How long what is outstanding will take."""

from hypothesis import given, settings, strategies as st

from kvferry.core.drain import RETRY_S_MAX, RETRY_S_MIN, DrainMeter


def measured(rate: float, seconds: int) -> DrainMeter:
    """A meter after so many seconds at a rate."""
    meter = DrainMeter()
    for second in range(seconds):
        meter.advance(second + 1.0, busy=True)
        meter.done(rate)
    return meter


@settings(max_examples=50)
@given(st.floats(1.0, 1e9), st.integers(1, 100), st.floats(0.1, 20.0))
def test_a_steady_rate_is_found(rate: float, seconds: int, expected: float) -> None:
    """What was done at a steady rate is expected to go on at it."""
    estimate = measured(rate, seconds).retry_after_s(expected * rate)
    assert 0.9 * expected <= estimate <= 1.1 * expected


def test_idle_time_is_no_slowness() -> None:
    """While there was nothing to do, nothing is learned."""
    meter = measured(10.0, 20)
    before = meter.retry_after_s(50)
    meter.advance(500.0, busy=False)
    assert before == meter.retry_after_s(50)


def test_a_stall_makes_the_estimate_grow_within_its_bounds() -> None:
    """The longer nothing ends, the longer the estimate, up to the bound; it is never shorter than the least."""
    meter = measured(10.0, 20)
    estimates = []
    for moment in range(21, 200, 10):
        meter.advance(float(moment), busy=True)
        estimates.append(meter.retry_after_s(10))
    assert sorted(estimates) == estimates
    assert RETRY_S_MAX == estimates[-1]
    assert RETRY_S_MIN == meter.retry_after_s(0)


def test_before_anything_was_done_it_is_as_long_as_it_has_lasted() -> None:
    """With nothing to judge by, what has been waited is said."""
    meter = DrainMeter()
    meter.advance(100.0, busy=False)
    assert RETRY_S_MIN == meter.retry_after_s(1000)
    meter.advance(103.0, busy=True)
    assert 3.0 == meter.retry_after_s(1000)
