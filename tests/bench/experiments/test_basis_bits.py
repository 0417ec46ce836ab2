"""The bench of bases in few bits, on its own bases; training with them at a size of seconds."""

import pytest

from bench import basis_bits

pytestmark = pytest.mark.slow


def test_what_is_left_of_a_basis():
    rows = basis_bits.geometry()
    for bits, length, energy in (("16", 0.002, 0.9999), ("8", 0.01, 0.9999), ("4", 0.15, 0.98)):
        row = rows[bits]
        assert 1 - length < row["smallest"] < 1 < row["largest"] < 1 + length
        assert row["captured_orthonormal"] > energy and row["overlap"] > energy
