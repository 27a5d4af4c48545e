"""Runs checks side by side, each within its bound; one that fails itself is a finding too."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from kvferry.doctor.findings import Finding, broken

_log = structlog.get_logger("kvferry.doctor")


@dataclass(frozen=True, slots=True)
class Check:
    """Looks at one thing. ``look`` must not block the event loop for long, and is cancelled at its bound."""

    name: str
    """Of the findings that it gives, or the beginning of their names."""
    look: Callable[[], Awaitable[Sequence[Finding]]]
    bound_s: float = 5.0


async def examine(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in the checks' order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_bounded(check), name=check.name) for check in checks]
    return [finding for task in tasks for finding in task.result()]


async def _bounded(check: Check) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(check.bound_s):
            return await check.look()
    except TimeoutError:
        return [_unknown(check.name, f"no answer within {check.bound_s:g} s")]
    except Exception as error:
        _log.debug("a check failed", check=check.name, exc_info=True)
        return [_unknown(check.name, f"this check failed: {type(error).__name__}: {error}")]


def _unknown(name: str, found: str) -> Finding:
    return broken(
        name,
        found,
        costs="nobody can tell whether this works",
        do="run `kvferry doctor` again on an idle machine; if it stays, report it with the output of --json",
    )
