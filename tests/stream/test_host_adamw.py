"""AdamW on the host: optax's numbers, the split's bits, and no trace of how the work was cut."""

import functools
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.quant import split_master
from springroll.stream import host_adamw
from springroll.stream.host_adamw import AdamW, Moments, join, split, zeros
from springroll.stream.priority_pool import PriorityPool

SETTINGS: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
SHAPES = {"matrix": (33, 65), "norm": (65,)}


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def weights():
    rng = np.random.default_rng(0)
    return {k: (rng.standard_normal(s) * 0.02).astype(np.float32) for k, s in SHAPES.items()}


@functools.cache
def gradients(steps=6):
    """Gradients of very different sizes, some of them exactly zero."""
    rng = np.random.default_rng(1)
    draw = lambda s: np.float32(10.0) ** rng.integers(-9, 2, s).astype(np.float32)
    normal = lambda s: rng.standard_normal(s).astype(np.float32) * (rng.random(s) > 0.1)
    return [
        {k: (normal(s) * draw(s)).astype(np.float32) for k, s in SHAPES.items()}
        for _ in range(steps)
    ]


def by_optax(tx, grads, compiled=False) -> tuple[Any, Any]:
    """Weights and moments after the steps, in float32, operation by operation unless compiled."""
    params = {k: jnp.asarray(w) for k, w in weights().items()}
    state = tx.init(params)

    def step(params, state, g):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(g, state, params)
            return optax.apply_updates(params, updates), state

    step = jax.jit(step) if compiled else step
    for g in grads:
        params, state = step(params, state, jax.tree.map(jnp.asarray, g))
    return params, state


def split_tree():
    halves = {k: split(w) for k, w in weights().items()}
    high, low = ({k: pair[i] for k, pair in halves.items()} for i in (0, 1))
    return high, zeros(high) | {"low": low}


def ours(adamw, grads, run=lambda jobs: [job() for job in jobs], **options):
    """The same on the split master; the pool is `run`."""
    high, state = split_tree()
    for step, g in enumerate(grads):
        run(adamw.jobs(high, state, g, step=step, **options))
    return high, state


def same_weights(high, state, expected):
    for k in SHAPES:
        np.testing.assert_array_equal(bits(join(high[k], state["low"][k])), bits(expected[k]))


@pytest.mark.parametrize(
    "lr", [1e-3, optax.linear_schedule(1e-3, 1e-4, 5)], ids=["constant", "schedule"]
)
def test_every_bit_is_optax_s(lr):
    with jax.numpy_dtype_promotion("standard"):
        high, state = ours(AdamW(lr, **SETTINGS), gradients())
    expected, adam = by_optax(optax.adamw(lr, **SETTINGS), gradients())
    same_weights(high, state, expected)
    for k in SHAPES:
        np.testing.assert_array_equal(bits(state["m"][k]), bits(adam[0].mu[k]))
        np.testing.assert_array_equal(bits(state["v"][k]), bits(adam[0].nu[k]))


def test_compiled_optax_differs_by_its_contractions_alone():
    """XLA contracts a product and a sum into one operation: a last bit of the update."""
    high, state = ours(AdamW(1e-3, **SETTINGS), gradients())
    expected, _ = by_optax(optax.adamw(1e-3, **SETTINGS), gradients(), compiled=True)
    for k, before in weights().items():
        found, moved = join(high[k], state["low"][k]), np.asarray(expected[k]) - before
        assert np.abs(found - expected[k]).max() <= 2e-6 * np.abs(moved).max()


def test_float32_weights_and_bfloat16_gradients():
    """Four kinds of leaf agree with each other: float32 or split, gradients float32 or bfloat16."""
    halves = [{k: x.astype(ml_dtypes.bfloat16) for k, x in g.items()} for g in gradients(3)]
    wide = [{k: x.astype(np.float32) for k, x in g.items()} for g in halves]
    adamw = AdamW(1e-3, **SETTINGS)
    expected, _ = by_optax(optax.adamw(1e-3, **SETTINGS), wide)
    for grads in (halves, wide):
        same_weights(*ours(adamw, grads), expected)
        plain = weights()
        state = zeros(plain)
        assert state["low"] == dict.fromkeys(SHAPES)
        for step, g in enumerate(grads):
            for job in adamw.jobs(plain, state, g, step=step):
                job()
        for k in SHAPES:
            np.testing.assert_array_equal(bits(plain[k]), bits(expected[k]))


def test_scale_and_decay_of_single_leaves():
    scaled = [{k: x * np.float32(0.37) for k, x in g.items()} for g in gradients(3)]
    tx = optax.adamw(1e-3, **SETTINGS, mask={"matrix": True, "norm": False})
    expected, _ = by_optax(tx, scaled)
    adamw = AdamW(1e-3, **SETTINGS)
    decay = {"matrix": True, "norm": False}
    same_weights(*ours(adamw, gradients(3), scale=0.37, decay=decay), expected)
    expected, _ = by_optax(optax.adam(1e-3), gradients(3))
    same_weights(*ours(adamw, gradients(3), decay=False), expected)


def test_chunks_and_threads_change_no_bit():
    adamw = AdamW(1e-3, **SETTINGS)
    high, state = ours(adamw, gradients())
    expected = {k: join(high[k], state["low"][k]) for k in SHAPES}
    for chunk in (1, 7, 64, 1000):
        same_weights(*ours(adamw, gradients(2), chunk=chunk), reached(adamw, 2))
    with PriorityPool(4) as pool:

        def run(jobs):
            pool.submit(0, jobs)
            pool.wait(0)

        same_weights(*ours(adamw, gradients(), run, chunk=13), expected)
    with ThreadPoolExecutor(8) as backwards:

        def run_backwards(jobs):
            list(backwards.map(lambda job: job(), reversed(list(jobs))))

        same_weights(*ours(adamw, gradients(), run_backwards, chunk=17), expected)


def reached(adamw, steps):
    high, state = ours(adamw, gradients(steps))
    return {k: join(high[k], state["low"][k]) for k in SHAPES}


def test_a_stretch_of_a_leaf_touches_nothing_else():
    adamw, g = AdamW(1e-3, **SETTINGS), gradients(1)[0]["matrix"]
    high, state = split_tree()
    before = high["matrix"].copy()
    leaf = Moments(*(state[f]["matrix"] for f in ("low", "m", "v")))
    adamw.update(high["matrix"], leaf, g, step=0, start=100, stop=300)
    moved = leaf.m.reshape(-1) != 0
    assert not moved[:100].any() and moved[100:300].any() and not moved[300:].any()
    adamw.update(high["matrix"], leaf, g, step=0, stop=100)
    adamw.update(high["matrix"], leaf, g, step=0, start=300)
    assert leaf.low is not None
    found = join(high["matrix"], leaf.low)
    np.testing.assert_array_equal(bits(found), bits(reached(adamw, 1)["matrix"]))
    assert (high["matrix"] != before).any()


def words():
    """Random bit patterns, and every edge of the format."""
    edges = [0x00000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000, 0x7F800000]
    edges += [0x00007FFF, 0x00008000, 0x3F808000, 0x3F818000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0]
    both = np.array(edges, np.uint32)
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    return np.concatenate([random, both, both | np.uint32(1 << 31)]).view(np.float32)


def test_the_split_is_that_of_quant_bit_for_bit():
    x = words()
    high, low = split(x)
    expected = jax.jit(split_master.split)(x)
    np.testing.assert_array_equal(high.view(np.uint16), np.asarray(expected[0]).view(np.uint16))
    np.testing.assert_array_equal(low, expected[1])
    np.testing.assert_array_equal(
        bits(join(high, low)), bits(jax.jit(split_master.join)(high, low))
    )


def test_an_update_splits_as_quant_does():
    """With nothing to change, the update joins and splits every special value again."""
    x = words()[-30:]
    high, low = split(x)
    state = Moments(low.copy(), np.zeros_like(x), np.zeros_like(x))
    AdamW(1.0, weight_decay=0.0).update(again := high.copy(), state, np.zeros_like(x), step=0)
    usual = np.isfinite(x)  # 0 times infinity is NaN, in optax as well
    np.testing.assert_array_equal(again.view(np.uint16)[usual], high.view(np.uint16)[usual])
    assert state.low is not None
    np.testing.assert_array_equal(state.low[usual], low[usual])
    assert np.isnan(again[~usual].astype(np.float32)).all() and not state.low[~usual].any()


def test_what_cannot_be_updated_is_named_before_anything_is_written():
    adamw, g = AdamW(1e-3), np.ones((4, 6), np.float32)
    high, low = split(g)
    m = np.zeros_like(g)
    kept = Moments(low, m, m.copy())
    frozen = high.copy()
    frozen.flags.writeable = False
    for weight, state, grad, message in [
        (high.astype(np.float16), kept, g, "weights of float16; expected bfloat16 or float32"),
        (high, kept._replace(low=None), g, "needs their low halves"),
        (high, kept, g.astype(np.float64), "gradients of float64"),
        (high, kept, g[:2], r"gradients has the shape \(2, 6\), the weights have \(4, 6\)"),
        (high, kept._replace(m=np.zeros((6, 4), np.float32).T), g, "m .* is not contiguous"),
        (frozen, kept, g, "weights .* writable"),
    ]:
        with pytest.raises(InputError, match=message):
            adamw.update(weight, state, grad, step=0)
    state = {"low": [low, low], "m": [m, m], "v": [m, m]}
    with pytest.raises(InputError, match="gradients has the shape"):
        adamw.jobs([high, high], state, [g, g[:1]], step=0)
    assert not m.any() and (high == 1).all()


def test_a_missing_extra_names_its_remedy(monkeypatch):
    host_adamw.kernels.cache_clear()
    monkeypatch.delitem(sys.modules, "springroll.stream.adamw_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(InputError, match=re.escape(pip_install("stream"))):
        split(np.zeros(3, np.float32))
    host_adamw.kernels.cache_clear()
