"""Examples in rows of one length, several to a row."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def packed_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of examples, by their numbers: each in the fullest row that has room, the longest first.

    >>> packed_rows([3, 8, 5, 2, 4], 8)
    [[1], [2, 0], [4, 3]]

    Best fit decreasing: at most 11 / 9 of the fewest rows that could hold them, usually within a
    few hundredths. The time is that of sorting.

    Args:
        lengths: of the examples, each at least 1 and at most `room`.
        room: tokens of a row.
    """
    rows: list[list[int]] = []
    left: dict[int, list[int]] = {}  # tokens that are left -> rows
    sizes: list[int] = []  # the keys, ascending
    for example in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[example]
        at = bisect_left(sizes, length)
        if at == len(sizes):
            rows.append([])
            row, room_left = len(rows) - 1, room
        else:
            room_left = sizes[at]
            row = left[room_left].pop()
            if not left[room_left]:
                del left[room_left], sizes[at]
        rows[row].append(example)
        if room_left > length:
            if room_left - length not in left:
                insort(sizes, room_left - length)
                left[room_left - length] = []
            left[room_left - length].append(row)
    return rows
