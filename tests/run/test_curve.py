"""The learning curve is a readable PNG, drawn without pyplot."""

import sys

import matplotlib.image
import numpy as np
import pytest

from springroll.run.curve import TRAIN, VALID, draw_curve


def rows(count=40):
    made = []
    for index in range(count):
        row = {"generation": index, "tokens": 1000 * index, "seconds": 0.1 * index}
        row["train"] = 8 - 3 * index / count
        made.append(row)
        if index % 10 == 0:
            made.append({**row, "train": None, "valid": 8 - 3 * index / count})
    return made


def draw(path, data, **changes):
    lines = {"unigram": 4.52, "bigram": 3.1, "gzip": 2.2}
    named = {"train": "train", "valid": "valid", "label": "bits per byte", "lines": lines}
    draw_curve(path, data, **(named | changes))
    return matplotlib.image.imread(path)[..., :3]


def share_of(image, color):
    wanted = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return (np.abs(image - wanted).max(axis=-1) < 0.02).mean()


def test_both_curves_are_drawn(tmp_path):
    image = draw(tmp_path / "curve.png", rows(), title="a run")
    assert image.shape[0] > 500 and image.shape[1] > 900
    assert share_of(image, TRAIN) > 1e-4
    assert share_of(image, VALID) > 1e-4
    without = draw(tmp_path / "other.png", rows(), valid="none")
    assert share_of(without, VALID) == 0


def test_the_lines_to_beat_are_drawn(tmp_path):
    image = draw(tmp_path / "a.png", rows(), lines={})
    assert not np.array_equal(image, draw(tmp_path / "b.png", rows()))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_short_runs_have_a_picture_too(tmp_path, count):
    draw(tmp_path / "curve.png", rows(count))


def test_a_run_without_time_has_no_second_axis(tmp_path):
    draw(tmp_path / "curve.png", [{**row, "seconds": 0.0} for row in rows()])


def test_pyplot_is_left_alone(tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    draw(tmp_path / "curve.png", rows())
    assert ("matplotlib.pyplot" in sys.modules) == loaded
