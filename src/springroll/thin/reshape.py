"""Which old axes become which new axes in a reshape."""

from __future__ import annotations

from collections.abc import Sequence


def reshape_groups(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest groups (old axes, new axes) of equal size that a reshape maps onto each other.

    Axes of size 1 join a neighbouring group.

    >>> reshape_groups((6, 4), (2, 3, 4))
    [((0,), (0, 1)), ((1,), (2,))]
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds: list[int] = []
        news: list[int] = []
        a = b = 1
        while not (a == b and a > 1):
            if i < len(old) and (a <= b or j == len(new)):
                a, i = a * old[i], i + 1
                olds.append(i - 1)
            elif j < len(new):
                b, j = b * new[j], j + 1
                news.append(j - 1)
            else:
                break
        groups.append((olds, news))
    return [(tuple(olds), tuple(news)) for olds, news in groups]
