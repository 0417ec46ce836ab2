"""Bases in 16, 8 and 4 bits: as small as promised, near the exact ones, the same everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.quant.root_companding import Quantized
from springroll.subspace.basis import change_of_basis, overlap
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.lowgrad import lowgrad
from springroll.subspace.stored_basis import floats, stored, stored_like
from springroll.trees import tree_bytes

STACK, M, N, R = 3, 64, 40, 16
# Of a column, the share that is lost: half a code at random, for numbers like Gaussian ones.
LOST: dict[Any, float] = {16: 0.003, 8: 0.01, 4: 0.15}


def bases(key=0, stack=STACK):
    return jnp.linalg.qr(jax.random.normal(jax.random.key(key), (stack, M, R)))[0]


@pytest.mark.parametrize("bits", LOST)
def test_a_stored_basis_is_near_the_exact_one(bits):
    exact = bases()
    kept = stored(exact, bits)
    lost = np.linalg.norm(floats(kept).astype(jnp.float32) - exact, axis=1)
    assert lost.max() < LOST[bits]
    scales = 4 / {16: np.inf, 8: 256, 4: 128}[bits]
    assert tree_bytes(kept) == STACK * M * R * (bits / 8 + scales)
    again = stored_like(kept, floats(kept))
    jax.tree.map(np.testing.assert_array_equal, again, kept)


def test_a_layer_of_a_stack_is_a_stack_of_a_layer():
    """Also where a matrix is smaller than a block, which then ends with it."""
    for exact in (bases(), bases()[:, :5, :3]):
        kept = stored(exact, 8)
        one = jax.tree.map(lambda x: x[1], kept)
        jax.tree.map(np.testing.assert_array_equal, one, stored(exact[1], 8))
        np.testing.assert_array_equal(floats(one), floats(kept)[1])


def test_what_is_left_of_orthonormality():
    """The subspace is nearly the same, and a length in it is off by little."""
    exact = bases()
    limits: Any = ((8, 0.9999, 0.02), (4, 0.97, 0.35))
    for bits, kept_share, length in limits:
        decoded = floats(stored(exact, bits))
        clean = jnp.linalg.qr(decoded)[0]
        assert float(jnp.min(overlap(clean, exact))) > kept_share
        values = np.linalg.svd(decoded, compute_uv=False)
        assert np.abs(values - 1).max() < length
        turn = change_of_basis(decoded, exact)
        assert float(jnp.max(jnp.abs(turn - jnp.eye(R)[None]))) < length


def gradient(params):
    """Of a quadratic whose directions matter unequally."""
    return {"w": params["w"] * jnp.linspace(0.1, 2, M)[None, :, None], "v": params["v"]}


PARAMS = {
    "w": jax.random.normal(jax.random.key(1), (STACK, M, N)),
    "v": jax.random.normal(jax.random.key(2), (N, 24)),
}


def trained(tx, steps=4) -> tuple[Any, Any]:
    state, params = tx.init(PARAMS), PARAMS
    step = jax.jit(lambda p, s: tx.update(gradient(p), s, p))
    for _ in range(steps):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    ("bits", "most"), [pytest.param(8, 0.05, marks=pytest.mark.slow), (4, 0.5)]
)
def test_a_step_with_coded_bases_is_nearly_the_step_with_exact_ones(bits, most):
    make = lambda bits: galore(optax.adam(0.05), R, refresh_interval=2, basis_bits=bits)
    exact, _ = trained(make(32))
    moved = float(jnp.linalg.norm(exact["w"] - PARAMS["w"]))
    off = lambda params: float(jnp.linalg.norm(params["w"] - exact["w"])) / moved
    params, state = trained(make(bits))
    assert off(params) < most
    kept: Any = state.projectors["w"].left
    assert isinstance(kept, Quantized) and kept.shape == (STACK, M, R)
    assert kept.codes.shape == (STACK, M * R // (8 // bits))


@pytest.mark.slow
@pytest.mark.parametrize("refresh", ["random", "svd"])
@pytest.mark.parametrize("side", ["in", "out"])
def test_every_refresh_and_side_takes_coded_bases(refresh, side):
    options: Any = {"side": side, "refresh": refresh, "refresh_interval": 2}
    exact, _ = trained(fira(0.05, R, **options))
    moved = float(jnp.linalg.norm(exact["w"] - PARAMS["w"]))
    params, _ = trained(fira(0.05, R, basis_bits=8, **options))
    assert float(jnp.linalg.norm(params["w"] - exact["w"])) < 0.05 * moved


@pytest.mark.parametrize("bits", [True, 12, "8", None])
def test_other_bits_are_refused(bits):
    for make in (
        lambda: galore(optax.adam(0.1), R, basis_bits=bits),
        lambda: lowgrad(loss, {"w": jnp.ones((20, 30))}, optax.sgd(1.0), X, basis_bits=bits),
    ):
        with pytest.raises(InputError, match=r"basis_bits is .*; expected 32 \(float32\), 16"):
            make()


def test_the_type_of_bases_by_its_former_name():
    old: Any = {"basis_dtype": jnp.bfloat16}
    with pytest.warns(DeprecationWarning, match="'basis_dtype' is now 'basis_bits'"):
        tx = galore(optax.adam(0.1), R, **old)
    state: Any = jax.eval_shape(tx.init, PARAMS)
    assert state.projectors["w"].left.dtype == jnp.bfloat16
    old = {"basis_dtype": jnp.float16}
    with (
        pytest.raises(InputError, match="basis_dtype is float16; expected float32 or bfloat16"),
        pytest.warns(DeprecationWarning),
    ):
        galore(optax.adam(0.1), R, **old)


X = jax.random.normal(jax.random.key(3), (6, 20))
LAYERS = {
    "layers": jax.random.normal(jax.random.key(4), (3, 20, 20)) / 5,
    "head": jax.random.normal(jax.random.key(5), (20, 12)) / 5,
}


def loss(params, x):
    block = jax.checkpoint(lambda x, w: (x + jnp.tanh(x @ w), None))
    x, _ = jax.lax.scan(block, x, params["layers"])
    return jnp.mean(jnp.square(x @ params["head"] - 1))


def low_rank(bits, **options):
    settings: dict[str, Any] = {"rank": 6, "refresh_interval": 2, "turns": 1} | options
    return lowgrad(loss, LAYERS, optax.adam(1e-2), X, basis_bits=bits, **settings)


@pytest.mark.slow
def test_a_trainer_with_coded_bases_nearly_follows_the_exact_one():
    """And its dense weights are those that its loss is of."""
    states = {}
    for bits in (32, 8):
        trainer = low_rank(bits)
        state, metrics = trainer.init(LAYERS), {}
        for _ in range(3):
            state, metrics = trainer.update(state, X)
        states[bits] = trainer, state, float(metrics["loss"])
    trainer, state, after = states[8]
    assert after == pytest.approx(states[32][2], rel=2e-3)
    assert isinstance(state.projectors["layers"], Quantized)
    shown = float(loss(state.params, X))
    _, metrics = trainer.step(state, X)
    assert shown == pytest.approx(float(metrics["loss"]), rel=1e-5)


@pytest.mark.slow
def test_bases_are_decoded_a_layer_at_a_time_where_blocks_are_recomputed():
    """The compiler keeps no decoded stack: temporary memory grows by less than one."""
    deep = LAYERS | {"layers": jnp.zeros((64, 128, 128)), "head": jnp.zeros((128, 12))}
    x = jnp.zeros((4, 128))
    stack = 64 * 128 * 64 * 4
    temporary = {}
    for bits in (32, 8):
        trainer = lowgrad(loss, deep, optax.sgd(1e-2), x, rank=64, select="layers", basis_bits=bits)
        compiled = trainer.lower("step", jax.eval_shape(trainer.init, deep), x).compile()
        memory: Any = compiled.memory_analysis()
        temporary[bits] = memory.temp_size_in_bytes
    assert temporary[8] - temporary[32] < stack / 8


def test_ranks_and_intervals_by_path():
    """A weight of another rank, or another interval, has a projector of its own."""

    def pair(params, x):
        return jnp.mean(jnp.tanh(x @ params["q"]) * (x @ params["k"]))

    params = {"q": jnp.ones((20, 30)), "k": jnp.ones((20, 30))}

    def make(**given):
        options: dict[str, Any] = {"rank": 4} | given
        return lowgrad(pair, params, optax.sgd(1.0), X, **options)

    assert [len(s.users) for s in make().layout.streams] == [2]
    by_rank = jax.eval_shape(make(rank={"*": 4, "k": 2}).init, params)
    assert {path: low.shape for path, low in by_rank.low.items()} == {"q": (30, 4), "k": (30, 2)}
    by_pace = make(refresh_interval=lambda path: 3 if path == "k" else 5).init(params)
    assert {n: i.tolist() for n, i in by_pace.schedule.interval.items()} == {"q": [5], "k": [3]}
    with pytest.raises(InputError, match=r"rank of k is 0; expected an integer of at least 1"):
        make(rank=lambda path: 0 if path == "k" else 4)
    with pytest.raises(InputError, match="no pattern of refresh_interval matches q: k"):
        make(refresh_interval={"k": 3})


def test_a_rank_above_a_side_is_that_side_and_said_once():
    said = r"rank 99 is above the smaller side of (v|head) .*; its rank is \d+, with which nothing"
    tx = galore(optax.adam(0.1), lambda path: 99 if path == "v" else 8)
    with pytest.warns(UserWarning, match=said) as seen:
        first: Any = jax.eval_shape(tx.init, PARAMS)
        jax.eval_shape(tx.init, PARAMS)
    assert len(seen) == 1 and first.projectors["v"].left.shape == (N, 24)
    with pytest.warns(UserWarning, match=said):
        trainer = low_rank(32, rank={"*": 6, "head": 99}, select=["layers", "head"])
    assert [s.rank for s in trainer.layout.streams if s.name == "head"] == [12]
