"""Foreign code runs under its own rules; ours stay strict around it."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.envs.suite_calls import (
    accepts,
    arrays,
    flat,
    flat_size,
    foreign,
    imported,
    quiet,
    raw,
    version,
)


def loose(a, b):
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    return a + b


def test_promotion_is_loose_inside_only():
    a, b = jnp.ones((2, 2), jnp.int32), jnp.ones(2, jnp.float32)
    with pytest.raises(DeprecationWarning):
        loose(a, b)
    np.testing.assert_array_equal(foreign(loose)(a, b), np.full((2, 2), 2.0))
    np.testing.assert_array_equal(jax.jit(jax.vmap(foreign(loose)))(a[None], b[None])[0], 2.0)
    with pytest.raises(ValueError, match="strict"):
        a[0] + b


def test_a_key_is_its_numbers():
    key = jax.random.key(3)
    np.testing.assert_array_equal(raw(key), jax.random.PRNGKey(3))
    np.testing.assert_array_equal(raw(raw(key)), raw(key))
    np.testing.assert_array_equal(jax.random.uniform(raw(key)), jax.random.uniform(key))


def test_python_numbers_become_arrays_a_loop_can_carry():
    def count(state):
        return jax.lax.fori_loop(0, 3, lambda _, s: {"n": s["n"] + 1, "x": s["x"] * 2.0}, state)

    after = jax.jit(lambda: count(arrays({"n": 0, "x": 1.0})))()
    assert after["n"] == 3 and after["x"] == 8 and not after["x"].weak_type
    keyed = arrays((jnp.uint8(1), jnp.bool_(True)))
    assert [leaf.dtype for leaf in keyed] == [jnp.uint8, jnp.bool_]


def test_flat_reads_leaves_in_order():
    tree = {"b": jnp.array([[1, 2], [3, 4]], jnp.uint8), "a": (jnp.bool_(True), jnp.float32(0.5))}
    assert flat(tree).tolist() == [1, 0.5, 1, 2, 3, 4] and flat(tree).dtype == jnp.float32
    assert flat(jnp.int32(7)).tolist() == [7]
    assert flat_size(tree) == flat_size(jax.eval_shape(lambda: tree)) == 6


def test_importing_is_quiet(tmp_path, monkeypatch, capsys):
    text = "import sys, warnings\nprint('hello')\nprint('x', file=sys.stderr)\nwarnings.warn('y')\n"
    (tmp_path / "noisy_suite.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert imported("noisy_suite") is sys.modules["noisy_suite"]
    assert capsys.readouterr() == ("", "")
    with quiet():
        print("nobody hears this")
    assert capsys.readouterr() == ("", "")


def test_version_and_options():
    assert version("jax") == f"jax {jax.__version__}"
    assert accepts(loose, "a") and not accepts(loose, "time_limit")
