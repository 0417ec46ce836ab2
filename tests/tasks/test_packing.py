"""Rows of examples: each stands in one row, none is too full, and few rows are needed."""

import numpy as np
import pytest

from springroll.tasks.packing import packed_rows


@pytest.mark.parametrize("seed", range(5))
def test_every_example_stands_in_one_row_that_has_room(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 65, 500).tolist()
    rows = packed_rows(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(500))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert max(sums) <= 64
    assert len(rows) <= 1.1 * -(-sum(lengths) // 64)
    assert rows == packed_rows(lengths, 64)


def test_it_is_best_fit_decreasing():
    lengths = np.random.default_rng(1).integers(1, 17, 60).tolist()
    left, rows, changed = [], [], []
    for time, i in enumerate(sorted(range(60), key=lambda i: (-lengths[i], i))):
        fits = [r for r in range(len(rows)) if left[r] >= lengths[i]]
        if not fits:
            left.append(16)
            rows.append([])
            changed.append(0)
            fits = [len(rows) - 1]
        chosen = min(fits, key=lambda r: (left[r], -changed[r]))
        left[chosen] -= lengths[i]
        rows[chosen].append(i)
        changed[chosen] = time
    assert packed_rows(lengths, 16) == rows


def test_nothing_is_packed_into_nothing():
    assert packed_rows([], 8) == [] and packed_rows([8], 8) == [[0]]
