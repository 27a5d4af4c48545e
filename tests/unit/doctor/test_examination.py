"""Checks run within their bounds, whatever they do."""

import asyncio
import time
from collections.abc import Sequence

from kvferry.doctor.examination import Check, examine
from kvferry.doctor.findings import Finding, Status, ok


async def _fine() -> Sequence[Finding]:
    return [ok("a", "fine")]


async def _stuck() -> Sequence[Finding]:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def _wrong() -> Sequence[Finding]:
    raise ZeroDivisionError("of its own")


async def test_a_check_that_hangs_or_fails_is_a_finding() -> None:
    """The others' findings come all the same, in their order, and within the longest bound."""
    started = time.monotonic()
    found = await examine([Check("stuck", _stuck, 0.05), Check("wrong", _wrong), Check("fine", _fine)])
    assert time.monotonic() - started < 2
    assert [("stuck", Status.BROKEN), ("wrong", Status.BROKEN), ("a", Status.OK)] == [
        (f.check, f.status) for f in found
    ]
    assert "0.05 s" in found[0].found
    assert "ZeroDivisionError: of its own" in found[1].found
    assert all(finding.costs and finding.do for finding in found[:2])
