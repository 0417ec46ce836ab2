"""The choice of registers is measured once and always one of two."""

import jax
import pytest

from springroll.quant import registers


@pytest.fixture(autouse=True)
def forgotten():
    registers.fastest_registers.cache_clear()
    yield
    registers.fastest_registers.cache_clear()


def test_both_are_timed():
    times = registers.matmul_seconds()
    assert set(times) == {"int8", "float32"} and all(t > 0 for t in times.values())


@pytest.mark.parametrize(
    ("times", "chosen"),
    [({"int8": 1.0, "float32": 2.0}, "int8"), ({"int8": 2.0, "float32": 1.0}, "float32")],
)
def test_the_faster_is_chosen_once(monkeypatch, times, chosen):
    calls = []
    monkeypatch.setattr(registers, "matmul_seconds", lambda: calls.append(1) or times)
    assert registers.fastest_registers() == registers.fastest_registers() == chosen
    assert calls == [1]


def test_an_accelerator_is_not_timed(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(registers, "matmul_seconds", lambda: pytest.fail("timed"))
    assert registers.fastest_registers() == "int8"
