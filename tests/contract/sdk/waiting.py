"""Waiting for a condition, bounded."""

import asyncio
from collections.abc import Callable

BOUND_S = 10.0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return once ``condition`` holds; fail the test when it does not within ``BOUND_S``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BOUND_S
    while not condition():
        assert loop.time() < deadline, f"{what}: not within {BOUND_S} s"
        await asyncio.sleep(0.01)
