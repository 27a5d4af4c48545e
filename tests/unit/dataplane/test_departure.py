"""When a data plane that was told to end may do so."""

import asyncio
from dataclasses import dataclass

import pytest

from kvferry_dataplane.departure import Departure


@dataclass
class Holder:
    """What is still held."""

    lease_count: int = 0
    read_count: int = 0
    connected: bool = False
    told: bool = False

    def say_leaving(self) -> None:
        """Note it."""
        self.told = True


async def turns() -> None:
    """Let every task run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("held", [Holder(lease_count=1), Holder(read_count=1), Holder(connected=True)])
async def test_it_stays_while_something_is_held(held: Holder) -> None:
    """A lease, a read or control's session keeps it, and it ends once none of them is left."""
    departure = Departure(60.0)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(departure.wait(held))
        departure.signalled()
        await turns()
        assert held.told
        assert not waiting.done()
        held.lease_count, held.read_count, held.connected = 0, 0, False
        departure.changed()


async def test_control_lets_it_go_or_a_second_signal_hurries() -> None:
    """Whatever it holds, it ends when control says so, or when it is told again."""
    for end in (Departure.let_go, Departure.signalled):
        departure = Departure(60.0)
        departure.signalled()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(departure.wait(Holder(lease_count=1, connected=True)))
            await turns()
            assert not waiting.done()
            end(departure)


@pytest.mark.parametrize("timeout_s", [0.0, 0.01])
async def test_it_does_not_stay_for_ever(timeout_s: float) -> None:
    """After its time-out it ends whatever it holds; with none it never waits."""
    departure = Departure(timeout_s)
    departure.signalled()
    async with asyncio.timeout(5):
        await departure.wait(Holder(lease_count=1, connected=True))
