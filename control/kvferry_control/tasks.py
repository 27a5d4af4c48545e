"""Background work: every task belongs to the process's task group, and a defect in one is logged, never lost."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from kvferry.core.errors import NotReady

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Start a coroutine whose result nobody waits for."""


def spawner(group: asyncio.TaskGroup) -> Spawn:
    """A ``Spawn`` on ``group``: an exception ends the task alone, and is logged as a defect.

    Spawning raises NotReady once the group ends, as it does when a typed error ends the process.
    """
    log = structlog.get_logger("kvferry.control.tasks")

    async def guarded(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("defect in background work", work=repr(work))

    def spawn(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = guarded(work)
        try:
            return group.create_task(task)
        except RuntimeError as error:
            task.close()
            work.close()
            raise NotReady("this control stops") from error

    return spawn
