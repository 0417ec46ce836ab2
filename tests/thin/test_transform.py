"""The transform itself: arguments, outputs, tracing once, and never densifying in silence."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll import compat
from springroll.errors import InputError
from springroll.thin.axis_trace import same_axes
from springroll.thin.densify import DensifyWarning
from springroll.thin.discovery import discover
from springroll.thin.interpreter import Rule
from springroll.thin.rules import RULES
from springroll.thin.transform import factored
from tests.thin.against_dense import close, compiled_text, dense_numpy, weight

W = weight(0, (6, 8), "mn")
X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)


def test_without_factored_arguments_it_is_the_same_function():
    fn = lambda p, x: {"out": jnp.tanh(x @ p["w"]), "n": x.sum()}
    plain = {"w": W.base}
    jax.tree.map(np.testing.assert_array_equal, factored(fn)(plain, X), fn(plain, X))


def test_python_arguments_stay_python():
    """Numbers, strings, None and functions steer the program; arrays flow through it."""
    seen = []

    def fn(p, x, mode, times, activation, extra=None, *, flip=False, scale=1.0):
        seen.append((mode, times, extra, flip, scale))
        for _ in range(times):
            x = activation(x @ p) * scale
        return -x if flip else x

    w = weight(0, (6, 6), "mn")
    run = factored(fn)
    out = run(w, X, "deep", 2, jnp.tanh, flip=True, scale=0.5)
    assert seen == [("deep", 2, None, True, 0.5)]
    dense = dense_numpy(w)
    close(out, -jnp.tanh(jnp.tanh(X @ dense) * 0.5 @ dense) * 0.5, 1e-5)
    run(w, X, "deep", 1, jnp.tanh)
    run(w, X, "deep", 1, jnp.sin)
    assert len(seen) == 3


def test_it_is_traced_once_per_signature():
    traces = []

    def fn(p, x, scale):
        traces.append(x.shape)
        return x @ p * scale

    run = factored(fn)
    for scale in (1.0, 1.0, 2.0):
        run(W, X, scale)
    assert traces == [(4, 6), (4, 6)]
    run(W, X[:2], 1.0)
    assert len(traces) == 3
    zero, negative = run(W, X, 0.0), run(W, X, -0.0)
    assert not np.any(np.signbit(zero) == np.signbit(negative))


def test_unhashable_python_arguments_still_work():
    class Switch:
        __hash__ = None  # type: ignore[assignment]

        def __init__(self, on):
            self.on = on

    run = factored(lambda p, x, s: x @ p if s.on else x)
    close(run(W, X, Switch(True)), X @ dense_numpy(W), 1e-5)
    assert run(W, X, Switch(False)).shape == (4, 6)


def test_factored_leaves_may_sit_anywhere():
    run = factored(lambda x, extra, *, head: x @ extra[0]["w"] @ head)
    head = weight(1, (8, 3), "nm")
    out = run(X, ({"w": W}, None), head=head)
    close(out, X @ dense_numpy(W) @ dense_numpy(head), 1e-5)


def test_closed_over_tracers_and_typed_keys():
    def outer(x, key):
        noise = jax.random.normal(key, (4, 8))
        return factored(lambda w, key: x @ w + noise + jax.random.uniform(key))(W, key)

    key = jax.random.key(3)
    expected = X @ dense_numpy(W) + jax.random.normal(key, (4, 8)) + jax.random.uniform(key)
    close(jax.jit(outer)(X, key), expected, 1e-5)


def test_outputs_that_do_not_touch_a_weight():
    run = factored(lambda w, x: (x, jnp.arange(3), 2.0, None))
    out = run(W, X)
    np.testing.assert_array_equal(out[0], X)
    assert out[1].tolist() == [0, 1, 2] and float(out[2]) == 2.0 and out[3] is None


def test_printing_and_forward_mode():
    printed = []

    def fn(w, x):
        y = x @ w
        jax.debug.callback(lambda v: printed.append(v.shape), y)
        return y

    close(factored(fn)(W, X), X @ dense_numpy(W), 1e-5)
    jax.effects_barrier()
    assert printed == [(4, 8)]
    _, tangent = jax.jvp(lambda x: factored(jnp.matmul)(x, W), (X,), (X,))
    close(tangent, X @ dense_numpy(W), 1e-5)


def test_densifying_warns_with_name_place_shape_and_bytes():
    params = {"blocks": {"wq": W}}
    with pytest.warns(DensifyWarning) as caught:
        out = factored(lambda p: jnp.exp(p["blocks"]["wq"]))(params)
    close(out, jnp.exp(dense_numpy(W)), 1e-5)
    (warning,) = caught
    text = str(warning.message)
    assert "blocks/wq (float32[6,8], 192 bytes per member)" in text
    assert "'exp'" in text and Path(__file__).name in text


def test_above_the_limit_it_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError) as error:
        factored(lambda p: jnp.exp(p["w"]), densify_limit=191)({"w": W})
    text = str(error.value)
    assert text.startswith("w (float32[6,8], 192 bytes per member) cannot stay low-rank")
    assert "roles={'w': 'dense'}" in text and "densify_limit" in text and "\n" not in text


def test_the_default_limit_is_a_mebibyte_and_none_never_raises():
    big = weight(0, (600, 500), "mn", rank=1)
    with pytest.raises(InputError, match="1,048,576"):
        jax.eval_shape(factored(jnp.exp), big)
    with pytest.warns(DensifyWarning):
        jax.eval_shape(factored(jnp.exp, densify_limit=None), big)


def test_one_report_per_place_even_in_loops():
    def fn(w, x):
        return jax.lax.fori_loop(0, 5, lambda i, c: c + jnp.exp(w).sum(), x)

    with pytest.warns(DensifyWarning) as caught:
        factored(fn)(W, jnp.float32(0))
    assert len(caught) == 1


def test_a_weight_that_is_returned_is_reported():
    with pytest.warns(DensifyWarning, match="'return'"):
        factored(lambda w: w.T)(W)


def test_vectors_and_rows_are_free():
    """What is no bigger than its factors is formed without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = factored(lambda w: jnp.exp(w[2]) + jnp.exp(w.sum(0)))(W)
    dense = dense_numpy(W)
    close(out, jnp.exp(dense[2]) + jnp.exp(dense.sum(0)), 1e-5)


def test_a_rule_may_be_added(monkeypatch):
    """The dict is the registry: one entry makes a primitive low-rank (docs/factored.md)."""

    def unchanged(frame, eqn, w):
        return [w.map(lambda a, axes: a)]

    fn = lambda w, x: x @ jnp.exp(w)
    assert discover(fn, W.base, X).leaves[0].kind == "dense"
    monkeypatch.setitem(RULES, "exp", Rule(unchanged, same_axes))
    assert discover(fn, W.base, X).leaves[0].roles == "mn"
    close(factored(fn, densify_limit=0)(W, X), X @ dense_numpy(W), 1e-5)


def test_dead_code_is_not_run_and_not_reported():
    def fn(w, x):
        jnp.exp(w)  # nobody looks at this
        return x @ w

    close(factored(fn, densify_limit=0)(W, X), X @ dense_numpy(W), 1e-5)


def test_equations_keep_their_name_scope():
    def fn(w, x):
        with jax.named_scope("mixer"):
            return x @ w

    text = compiled_text(jax.jit(factored(fn)).lower(W, X))
    assert "mixer" in text


def test_source_lines_are_short():
    assert compat.shortened("/a/b/site-packages/pkg/x.py:1 (f)", "/a") == "pkg/x.py:1 (f)"
    assert compat.shortened("/home/me/x.py:1 (f)", "/home/me/") == "x.py:1 (f)"
    assert compat.shortened("/else/x.py:1 (f)", "/home/me") == "/else/x.py:1 (f)"
