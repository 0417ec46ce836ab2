"""The bench of residuals, for a few generations."""

import pytest

from bench import int8_residuals

pytestmark = pytest.mark.slow


def test_half_a_byte_is_as_good_as_float32_and_nothing_is_not():
    [left] = int8_residuals.run(1, {0.5: 300})["left"].values()
    assert set(left) == set(int8_residuals.KEPT)
    assert left["4 bits"][0] == pytest.approx(left["float32"][0], rel=0.2)
    assert left["nothing"][0] > 1.4 * left["4 bits"][0]
