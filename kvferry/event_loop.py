"""The event loop of kvferry's own processes."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a process's coroutine to its end, as ``asyncio.run`` does, on uvloop's event loop.

    What a small pull takes is mostly that processes wake up and hand a message on, which uvloop does sooner.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
