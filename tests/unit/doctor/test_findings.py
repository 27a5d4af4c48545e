"""Findings, and the worst of them."""

import pytest

from kvferry.doctor.findings import Finding, Status, broken, exit_status, none, ok, skipped, slow, worst

FINE = ok("a.fine", "fine", figure=1)
SLOW = slow("a.slow", "slow", costs="time", do="hurry")
BROKEN = broken("a.broken", "broken", costs="everything", do="mend it")
ABSENT = none("a.none", "nothing")
SKIPPED = skipped("a.skipped", "not asked")


@pytest.mark.parametrize(
    ("findings", "status", "exits_with"),
    [
        ([], Status.OK, 0),
        ([FINE, ABSENT, SKIPPED], Status.OK, 0),
        ([ABSENT], Status.NONE, 0),
        ([FINE, SLOW, ABSENT], Status.SLOW, 3),
        ([BROKEN, SLOW, FINE], Status.BROKEN, 4),
    ],
)
def test_the_worst_decides(findings: list[Finding], status: Status, exits_with: int) -> None:
    """The worst finding is the whole's, and the exit status says it beside those of failures and wrong usage."""
    assert (status, exits_with) == (worst(findings), exit_status(findings))


def test_json_has_every_key_always() -> None:
    """A finding without a fault has the same keys as one with."""
    keys = {"check", "status", "found", "costs", "do", "values"}
    assert [keys] * 3 == [set(finding.to_dict()) for finding in (FINE, SLOW, SKIPPED)]
    assert {"figure": 1} == FINE.to_dict()["values"]
