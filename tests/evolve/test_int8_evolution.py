"""int8 weights are evolved like floats: in their units, without bias, and losing no small step."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.evolve import step
from springroll.evolve.members import each_member
from springroll.evolve.roles import describe
from springroll.models.layers import linear
from springroll.quant.int8_weights import (
    FINE,
    Int8,
    dequantize_weights,
    is_int8,
    no_residual,
    quantize_weights,
    real,
)
from springroll.quant.quantize_state import quantize_state
from springroll.run.checkpoint import differing_paths, load, save
from springroll.trees import tree_bytes
from tests.evolve.dense_population import all_params, weighted_sum

POP, LAYERS, WIDTH, INNER = 16, 2, 12, 20
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((7, WIDTH)), jnp.float32)
FLOATS = {
    "layers": {
        "up_proj": jnp.asarray(0.3 * RNG.standard_normal((LAYERS, INNER, WIDTH)), jnp.float32),
        "down_proj": jnp.asarray(0.3 * RNG.standard_normal((LAYERS, WIDTH, INNER)), jnp.float32),
    },
    "head": jnp.asarray(RNG.standard_normal((WIDTH, 3)), jnp.float32),
}
PARAMS = quantize_weights(FLOATS)
UP = "layers/up_proj/values"
RESIDUALS = [("error_feedback", FINE), ("error_feedback_4bit", 16)]
QUICK = [pytest.param(*RESIDUALS[0], marks=pytest.mark.slow), RESIDUALS[1]]


def outputs(params, x):
    def block(x, layer):
        return x + linear(jnp.tanh(linear(x, layer["up_proj"])), layer["down_proj"]), None

    return jax.lax.scan(block, x, params["layers"])[0] @ params["head"]


plain = jax.jit(outputs)


@functools.cache  # few of them, as every one compiles its own programs
def strategy(master="error_feedback", rate=0.005, momentum=None, **options):
    optimizer = options.pop("optimizer", optax.sgd(rate, momentum=momentum))
    options = {"pop_size": POP, "sigma": 0.02, "optimizer": optimizer, "master": master} | options
    return sr.eggroll(**options)


@functools.cache
def first_state(es):
    return jax.jit(es.init)(jax.random.key(0), PARAMS)


def in_place(params):
    """The floats that int8 weights stand for, in the place of their values."""
    one = lambda x: dataclasses.replace(x, values=real(x)) if is_int8(x) else x
    return jax.tree.map(one, params, is_leaf=is_int8)


def weights_of(state):
    """{path: float32 weights, residual included}, of the int8 ones."""
    found = {}
    for name, x in state.params["layers"].items():
        kept = state.master["layers"][name].values
        if isinstance(kept, optax.MaskedNode):
            found[name] = real(x)
        else:
            found[name] = kept if kept.dtype == jnp.float32 else real(x, kept)
    return found


def moved(es, state, generations, seed=1):
    """The state after steps along given fitness, the same whatever the weights are."""
    rng = np.random.default_rng(seed)
    for _ in range(generations):
        fitness = jnp.asarray(rng.standard_normal(POP), jnp.float32)
        state, _ = es.tell(state, es.ask(state), fitness)
    return state


@pytest.mark.parametrize(
    "noise, roles", [pytest.param("gaussian", "smn", marks=pytest.mark.slow), ("rademacher", "snm")]
)
def test_members_stand_where_formed_weights_do(noise, roles):
    es = sr.eggroll(pop_size=4, sigma=0.1, rank=2, noise=noise, roles={"layers/*/values": roles})
    members = es.ask(es.init(jax.random.key(0), PARAMS))
    found = each_member(outputs, PARAMS, members, X)
    for member, weights in enumerate(all_params(in_place(PARAMS), members)):
        formed = jax.tree.map(lambda x: x.values if is_int8(x) else x, weights, is_leaf=is_int8)
        np.testing.assert_allclose(found[member], plain(formed, X), atol=1e-5)
    assert np.abs(found[0] - plain(dequantize_weights(PARAMS), X)).max() > 0.1


def test_pairs_are_antithetic_in_the_units_of_the_weights():
    """A linear function of one matrix: both sides add up to twice the middle, and E has size 1."""
    params = {"layers": {"up_proj": PARAMS["layers"]["up_proj"]}}
    es = strategy(sigma=0.5, pop_size=256)
    members = es.ask(es.init(jax.random.key(3), params))
    fn = lambda p: linear(jnp.eye(WIDTH), jax.tree.map(lambda x: x[1], p["layers"]["up_proj"]))
    found = np.asarray(each_member(fn, params, members))
    middle = np.asarray(fn(params))
    np.testing.assert_allclose(found[::2] + found[1::2], 2 * np.asarray([middle] * 128), atol=2e-5)
    assert abs((found - middle).std() - 0.5) < 0.02  # sigma, although rows differ in scale


def test_the_step_is_the_weighted_sum_of_the_members():
    es = strategy("float32")
    state = first_state(es)
    members = es.ask(state)
    fitness = np.arange(POP, dtype=np.float32)
    told, _ = es.tell(state, members, jnp.asarray(fitness))
    shaped = (fitness - fitness.mean()) / fitness.std()
    sums = weighted_sum(members, shaped)
    for name, weights in weights_of(told).items():
        start = np.asarray(real(PARAMS["layers"][name]))
        want = start + 0.005 * 0.02 / math.sqrt(POP) * sums[f"layers/{name}/values"]
        np.testing.assert_allclose(weights, want, atol=1e-6)
        x = told.params["layers"][name]
        scale = np.asarray(x.scale)[..., None]
        off = np.abs(np.asarray(x.values) - np.clip(want / scale, -127, 127))
        assert off.max() < 0.5 + 1e-4  # the model reads the nearest numbers
        np.testing.assert_array_equal(x.scale, PARAMS["layers"][name].scale)


@functools.cache
def after_300(master):
    es = strategy(master)
    return moved(es, first_state(es), 300)


@pytest.mark.parametrize(("master", "fine"), QUICK)
def test_error_feedback_follows_the_exact_residual(master, fine):
    """Rounding errors e_t of the residual have mean 0 and lie in an interval of a fine step, 1/256
    or 1/16 of a step of the grid.

    So after T generations all of n weights are within sqrt(T / 2 log(2 n / p)) fine steps of the
    exact ones, but for a probability of p (Hoeffding and Azuma, and a union over the weights).
    float32 adds 127 * 2^-23 steps per operation. Their mean, of n independent ones, is nearer by
    sqrt(n): nothing is lost on average. Plain rounding moves nothing at all: steps of a generation
    are below half a step of the grid.
    """
    generations = 300
    ends = {name: after_300(name) for name in ("float32", master, None)}
    exact, fed = weights_of(ends["float32"]), weights_of(ends[master])
    n = sum(x.size for x in exact.values())
    bound = math.sqrt(generations / 2 * math.log(2 * n / 1e-6)) / fine + generations * 5e-5
    assert bound < 64 / fine
    # a residual has a variance of 1/4 at most from each generation, in fine steps
    typical = math.sqrt(generations) / 2 / fine
    for name, start in PARAMS["layers"].items():
        inside = np.abs(start.values) < 90  # those that do not come to the end of the grid
        first, scale = np.asarray(real(start)), np.asarray(start.scale)[..., None]
        gone, follows = (((np.asarray(x[name]) - first) / scale)[inside] for x in (exact, fed))
        assert np.abs(gone).max() < 37
        assert np.abs(gone - follows).max() < bound
        assert np.sqrt(np.mean((gone - follows) ** 2)) < 1.1 * typical
        assert abs(np.mean(gone - follows)) < 4 * typical / math.sqrt(gone.size)
        assert np.sqrt(np.mean(gone**2)) > 0.2  # it went somewhere
        found = {m: np.asarray(s.params["layers"][name].values, np.int32) for m, s in ends.items()}
        differ = np.abs(found[master] - found["float32"])[inside]
        assert differ.max() <= 1 + bound and differ.mean() < 2 * bound
        np.testing.assert_array_equal(found[None], start.values)


@functools.partial(jax.jit, static_argnums=0)
def rounded_by(master, seeds, target):
    """The weights read and those with residuals, of one step to `target`, for all seeds."""
    x = PARAMS["layers"]["up_proj"]
    params = {"w": x}
    nothing: Any = optax.MaskedNode()
    copies = {"w": Int8(no_residual(x.values, step.RESIDUAL_BITS.get(master, 8)), nothing)}

    def one(seed):
        moved = {"w": Int8(target, nothing)}
        new, kept = step.stored(params, moved, copies, master, seed, jnp.int32(0))
        return real(new["w"]), real(new["w"], kept["w"].values)

    return jax.vmap(one)(seeds)


@pytest.mark.parametrize("master, fine", [*RESIDUALS, ("stochastic", 1)])
def test_rounding_is_unbiased(master, fine):
    x = PARAMS["layers"]["up_proj"]
    inside = np.clip(np.asarray(x.values), -126, 126)
    steps = inside + RNG.uniform(-0.5, 0.5, x.values.shape)
    target = jnp.asarray(steps * np.asarray(x.scale)[..., None], jnp.float32)
    count = 4000
    seeds = jnp.asarray(RNG.integers(0, 2**32, (count, 2), np.uint64).astype(np.uint32))
    read, both = rounded_by(master, seeds, target)
    found = np.asarray(both if fine > 1 else read, np.float64)
    errors = (found.mean(0) - np.asarray(target)) / np.asarray(x.scale)[..., None] * fine
    deviation = 0.5 / math.sqrt(count)  # at most, of the mean of one weight
    assert np.abs(errors).max() < 5.5 * deviation
    assert abs(errors.mean()) < 5 * deviation / math.sqrt(errors.size)


@pytest.mark.parametrize(
    "master", ["error_feedback_4bit", pytest.param("error_feedback", marks=pytest.mark.slow)]
)
def test_a_resumed_run_has_the_same_bits(tmp_path, master):
    es = strategy(master, momentum=0.9)
    start = first_state(es)
    whole = moved(es, moved(es, start, 3), 3, seed=2)
    sidecar = save(tmp_path, 3, moved(es, start, 3), {})
    resumed = moved(es, load(sidecar, start).tree, 3, seed=2)
    assert not differing_paths(whole, resumed)
    assert differing_paths(whole, start)
    assert jax.tree.structure(whole) == jax.tree.structure(start)


@pytest.mark.parametrize(
    "master", [pytest.param("error_feedback", marks=pytest.mark.slow), "error_feedback_4bit"]
)
def test_slices_of_a_stack_are_rounded_as_the_whole(master):
    es = strategy(master)
    state = moved(es, first_state(es), 1)
    perturbation = es.ask(state).perturbation
    weights = step.working_weights(perturbation, state.params, state.master)
    weights = jax.tree.map(lambda w: w * 1.003, weights)
    stored = jax.jit(step.stored, static_argnums=3)
    cut = lambda tree, i: jax.tree.map(lambda x: x[i : i + 1], {"layers": tree["layers"]})
    args = (state.seed, state.generation)
    whole = stored(state.params, weights, state.master, master, *args)
    for i in range(LAYERS):
        parts = (cut(tree, i) for tree in (state.params, weights, state.master))
        found = stored(*parts, master, *args, jnp.int32(i))
        for new, of_all in zip(found, whole, strict=True):
            assert not differing_paths(new, cut(of_all, i))


def test_nothing_moves_when_all_members_are_lost():
    es = strategy()
    state = moved(es, first_state(es), 2)
    told, metrics = es.tell(state, es.ask(state), jnp.full(POP, jnp.nan))
    assert metrics["dropped"] == POP
    assert not differing_paths((state.params, state.master), (told.params, told.master))


@pytest.mark.parametrize(
    ("bits", "residual", "expected"), [(32, 8, 6), (8, 8, 3), (4, 8, 2.5), (32, 4, 5.5)]
)
def test_bytes_per_weight(bits, residual, expected):
    """One for the value, one or half a one for the residual, and those of the momentum."""
    w = {"layers": {"up_proj": jnp.ones((4, 128, 256))}}
    optimizer = optax.sgd(0.1, momentum=0.9)
    optimizer = optimizer if bits == 32 else quantize_state(optimizer, bits=bits)
    es = strategy("error_feedback" if residual == 8 else "error_feedback_4bit", optimizer=optimizer)
    state = jax.eval_shape(es.init, jax.random.key(0), jax.eval_shape(quantize_weights, w))
    assert tree_bytes(state) / (4 * 128 * 256) == pytest.approx(expected, rel=0.03)
    kept = 4 * 128 * (256 + 256 * residual // 8 + 4)
    assert tree_bytes(state.params) + tree_bytes(state.master) == kept


def test_structure_no_weight_per_member_and_no_float_stack():
    es = strategy()
    state = first_state(es)
    run = jax.jit(lambda params, members: each_member(outputs, params, members, X))
    text = run.lower(state.params, es.ask(state)).compile().as_text() or ""
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}
    weight = {INNER, WIDTH}
    assert any(weight <= set(s) for s in shapes)  # a layer's, as floats
    assert not [s for s in shapes if weight <= set(s) and (LAYERS in s or {POP, POP // 2} & set(s))]


def test_an_int8_model_learns():
    """A regression whose steps are below the grid: it improves, and plain rounding does not."""
    target = outputs(FLOATS, X) + jnp.asarray(RNG.standard_normal((7, 3)), jnp.float32)
    score = lambda params: -jnp.mean((outputs(params, X) - target) ** 2)
    first, ends = float(score(PARAMS)), {}
    for master in ("error_feedback", None):
        es = strategy(master)
        state = first_state(es)
        for _ in range(500):
            members = es.ask(state)
            state, _ = es.tell(state, members, sr.evaluate(score, state, members))
        state = state._replace(params=state.params | {"head": FLOATS["head"]})
        ends[master] = float(score(state.params))
    assert ends["error_feedback"] > 0.5 * first
    assert ends[None] < 0.9 * first


def test_scales_are_left_alone_with_and_without_discovered_roles():
    discovered = sr.discover(outputs, PARAMS, X)
    assert discovered[UP].roles == "snm" and discovered["layers/up_proj/scale"].kind == "frozen"
    for roles in (discovered, None):
        found = describe(PARAMS, rank=1, roles=roles)
        kinds = {leaf.path: (leaf.kind, leaf.dtype) for leaf in found.leaves}
        assert kinds[UP] == ("low-rank", "int8")
        assert kinds["layers/up_proj/scale"] == ("frozen", "float32")
        assert kinds["head"] == ("low-rank", "float32")


def test_bad_options():
    with pytest.raises(InputError, match=r"up_proj/values: int8 weights .* they are 'dense' here"):
        describe(PARAMS, rank=1, roles={UP: "dense"})
    with pytest.raises(InputError, match="matrices, role smn, or not at all; they are 'mns' here"):
        describe(PARAMS, rank=1, roles={UP: "mns"})
    with pytest.raises(InputError, match=r"down_proj is int8 with a scale per channel; sr.eggroll"):
        describe(PARAMS, rank=1, integers=True)
    with pytest.raises(
        InputError, match=r"master is 'exact'; expected 'float32', .*error_feedback"
    ):
        strategy("exact")
    frozen = describe(PARAMS, rank=1, roles={"layers/*": "frozen"})
    copies = step.master_copies(frozen, PARAMS, "error_feedback")
    assert not jax.tree.leaves(copies)
    assert len(jax.tree.leaves(step.working_weights(frozen, PARAMS, copies))) == 1
