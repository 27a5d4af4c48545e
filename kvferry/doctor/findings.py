"""A finding: what was looked at, how it is, what that costs and the one thing to do. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

Value = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]
"""What JSON holds."""


class Status(StrEnum):
    """How something is. ``rank`` orders them, the worst last."""

    NONE = "NONE"
    """There is nothing of the kind here, so nothing can be wrong with it."""
    SKIPPED = "SKIPPED"
    """Was not looked at: something that was not given is needed for it."""
    OK = "OK"
    SLOW = "SLOW"
    """Works, at the cost that the finding names."""
    BROKEN = "BROKEN"
    """Does not work, or nobody can tell whether it does."""

    @property
    def rank(self) -> int:
        """Higher is worse."""
        return list(Status).index(self)

    @property
    def is_fault(self) -> bool:
        """Whether somebody has to do something."""
        return self in (Status.SLOW, Status.BROKEN)


EXIT_STATUSES: Mapping[Status, int] = {Status.SLOW: 3, Status.BROKEN: 4}
"""Beside 0, nothing to do; 1, the doctor itself failed; 2, wrong usage."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; made by the function of its status, such as :func:`slow`."""

    check: str
    """Stable name, ``area.thing``."""
    status: Status
    found: str
    """What there is, with its figures."""
    costs: str = ""
    """What a fault costs whoever does nothing; empty without a fault."""
    do: str = ""
    """The one thing to do; empty without a fault."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """The figures by name, with their units."""

    def to_dict(self) -> dict[str, Value]:
        """The finding as JSON holds it."""
        return {
            "check": self.check,
            "status": self.status.value,
            "found": self.found,
            "costs": self.costs,
            "do": self.do,
            "values": dict(self.values),
        }


def ok(check: str, found: str, **values: Value) -> Finding:
    """It is as it should be."""
    return Finding(check, Status.OK, found, values=values)


def none(check: str, found: str, **values: Value) -> Finding:
    """There is nothing of the kind here."""
    return Finding(check, Status.NONE, found, values=values)


def skipped(check: str, why: str, **values: Value) -> Finding:
    """It was not looked at."""
    return Finding(check, Status.SKIPPED, why, values=values)


def slow(check: str, found: str, *, costs: str, do: str, **values: Value) -> Finding:
    """It works, at a cost."""
    return Finding(check, Status.SLOW, found, costs, do, values)


def broken(check: str, found: str, *, costs: str, do: str, **values: Value) -> Finding:
    """It does not work."""
    return Finding(check, Status.BROKEN, found, costs, do, values)


def worst(findings: Iterable[Finding]) -> Status:
    """The worst status among findings; OK where nothing is worse."""
    return max((finding.status for finding in findings), key=lambda status: status.rank, default=Status.OK)


def exit_status(findings: Iterable[Finding]) -> int:
    """What the process ends with."""
    return EXIT_STATUSES.get(worst(findings), 0)
