"""The bench of moments in few bits, at a size that takes a second."""

import numpy as np
import pytest

from bench import state_quantization

pytestmark = pytest.mark.slow


def test_roots_beat_lines():
    result = state_quantization.run(rows=32, columns=512, steps=50)
    table = result["table"]
    for bits, first, second in ((8, 0.02, 0.02), (4, 0.25, 0.2)):
        ours, theirs = (table[f"{bits} bits, {name}"] for name in ("root", "linear"))
        assert ours["first"] < first and ours["second"] < second
        assert ours["off_by_two"] < 0.5 * theirs["off_by_two"] + 1e-3
        assert ours["second"] < 0.5 * theirs["second"]
    assert result["ratio"] > 2


def test_linear_codes_are_what_they_say():
    x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256)
    assert np.abs(state_quantization.linear(x, 8, True) - x).max() <= 0.5 / 127 + 1e-6
