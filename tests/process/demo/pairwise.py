"""Selections in which every pair of values of any two factors occurs together at least once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product

Case = dict[str, str]
_Pair = tuple[tuple[str, str], tuple[str, str]]


def covering(factors: Mapping[str, Sequence[str]], allowed: Callable[[Case], bool]) -> list[Case]:
    """Cases that together hold every pair of values that any allowed case holds. The same ones every time."""
    candidates = [case for case in _cases(factors) if allowed(case)]
    missing = {pair for case in candidates for pair in _pairs(case)}
    chosen: list[Case] = []
    while missing:
        best = max(candidates, key=lambda case: len(missing & set(_pairs(case))))
        chosen.append(best)
        missing -= set(_pairs(best))
    return chosen


def representatives(cases: Sequence[Case]) -> list[Case]:
    """A few of the cases in which every value of every factor occurs at least once."""
    missing = {value for case in cases for value in case.items()}
    chosen: list[Case] = []
    while missing:
        best = max(cases, key=lambda case: len(missing & set(case.items())))
        chosen.append(best)
        missing -= set(best.items())
    return chosen


def _cases(factors: Mapping[str, Sequence[str]]) -> Iterator[Case]:
    for values in product(*factors.values()):
        yield dict(zip(factors, values, strict=True))


def _pairs(case: Case) -> Iterator[_Pair]:
    return combinations(sorted(case.items()), 2)
