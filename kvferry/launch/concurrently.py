"""Runs several coroutines together and reports the first failure as itself."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def all_of(coroutines: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Results in order. The first failure cancels the others and is raised itself, without a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:
        first = first_leaf(failures)
        raise first from first.__cause__
    return [task.result() for task in tasks]


def first_leaf(error: BaseException) -> BaseException:
    """The first exception inside nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
