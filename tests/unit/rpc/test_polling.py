"""A loop is kept awake for a while after a message, and no longer; nor while something else needs its thread."""

import asyncio

from kvferry.rpc.polling import Polling

TURNS = 20


class Clock:
    """Stands still but by the test's hand; counts how often it was looked at, once a turn of a loop kept awake."""

    def __init__(self) -> None:
        self.now = 100.0
        self.looks = 0

    def __call__(self) -> float:
        """The time."""
        self.looks += 1
        return self.now


async def turns_kept_awake(clock: Clock) -> int:
    """In how many of so many turns of the loop it was polling."""
    before = clock.looks
    for _ in range(TURNS):
        await asyncio.sleep(0)
    return clock.looks - before


async def test_it_polls_from_a_message_on_until_the_time_is_over() -> None:
    """A later message prolongs it, and begins it anew; the loop turns once for each of both."""
    clock = Clock()
    polling = Polling(3.0, clock=clock)
    assert await turns_kept_awake(clock) == 0
    polling.message_passed()
    assert await turns_kept_awake(clock) >= TURNS - 1
    clock.now += 2.0
    polling.message_passed()
    clock.now += 2.0
    assert TURNS - 1 <= await turns_kept_awake(clock) <= TURNS + 1
    clock.now += 1.0
    await turns_kept_awake(clock)
    assert await turns_kept_awake(clock) == 0
    polling.message_passed()
    assert await turns_kept_awake(clock) >= TURNS - 1


async def test_it_gives_way() -> None:
    """It stops when it may not poll, and does not go on before the next message."""
    clock, may = Clock(), True
    polling = Polling(3.0, lambda: may, clock)
    polling.message_passed()
    assert await turns_kept_awake(clock) >= TURNS - 1
    may = False
    await turns_kept_awake(clock)
    may = True
    assert await turns_kept_awake(clock) == 0
    polling.message_passed()
    assert await turns_kept_awake(clock) >= TURNS - 1


async def test_without_a_time_it_never_polls() -> None:
    """The default costs nothing, not even a look at the clock."""
    clock = Clock()
    Polling(0.0, clock=clock).message_passed()
    assert await turns_kept_awake(clock) == 0
