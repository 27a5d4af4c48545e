"""Whether strided arrays keep to bytes of their own. Pure arithmetic on (count, stride) axes, in Python's integers."""

from collections.abc import Sequence

Axes = Sequence[tuple[int, int]]
"""Count and byte stride of each axis."""


def first_too_small(axes: Axes, element_bytes: int) -> tuple[int, int] | None:
    """The first axis, by ascending stride, whose step does not clear all that lies inside it, and those bytes.

    None if there is no such axis: then no two elements share a byte.
    """
    extent = element_bytes
    for index in sorted(range(len(axes)), key=lambda index: axes[index][1]):
        count, stride = axes[index]
        if count == 1:
            continue
        if stride < extent:
            return index, extent
        extent += (count - 1) * stride
    return None


def share_bytes(first: Axes, second: Axes, distance: int, first_element: int, second_element: int) -> bool:
    """Whether two arrays have a byte in common; the second begins ``distance`` bytes after the first.

    Each must keep to bytes of its own. Exact where both step alike along their outer axes, as groups do that take turns
    inside one block; otherwise arrays whose spans meet count as sharing.
    """
    return _meet(_outermost_first(first), _outermost_first(second), distance, (first_element, second_element))


def _outermost_first(axes: Axes) -> list[tuple[int, int]]:
    return sorted((axis for axis in axes if axis[0] > 1), key=lambda axis: -axis[1])


def _span(axes: Axes, element_bytes: int) -> int:
    return sum((count - 1) * stride for count, stride in axes) + element_bytes


def _meet(first: Axes, second: Axes, distance: int, elements: tuple[int, int]) -> bool:
    if distance >= _span(first, elements[0]) or -distance >= _span(second, elements[1]):
        return False
    if not first or not second or first[0][1] != second[0][1]:
        return True
    (first_count, period), second_count = first[0], second[0][0]
    inner = first[1:], second[1:]
    # Steps of the second less steps of the first for which what lies inside one period can meet at all.
    low = -((distance + _span(inner[1], elements[1]) - 1) // period)
    high = (_span(inner[0], elements[0]) - 1 - distance) // period
    steps = range(max(low, 1 - first_count), min(high, second_count - 1) + 1)
    return any(_meet(*inner, distance + step * period, elements) for step in steps)
