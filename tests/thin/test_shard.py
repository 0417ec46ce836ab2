"""Weights and populations spread over (fake) devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from springroll.thin.factored_array import Factored
from springroll.thin.transform import factored
from tests.thin.against_dense import (
    check,
    close,
    compiled_text,
    dense_numpy,
    equations,
    in_axes,
    weight,
)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))


def rows(*shape, seed=9):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


W = weight(0, (6, 8), "mn")
X = rows(4, 6)


def all_gathered(w, x):
    return x @ lax.all_gather(w, "a", axis=0, tiled=True)


LAYOUTS = {
    # name: body, spec of w, spec of x, spec of the output
    "data parallel": (lambda w, x: x @ w, P(), P("a"), P("a")),
    "row parallel": (lambda w, x: lax.psum(x @ w, "a"), P("a", None), P(None, "a"), P()),
    "column parallel": (lambda w, x: x @ w, P(None, ("a", "b")), P(), P(None, ("a", "b"))),
    "both": (lambda w, x: lax.psum(x @ w, "a"), P("a", "b"), P(None, "a"), P(None, "b")),
    "gathered before use": (all_gathered, P("a", None), P("a"), P("a")),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_inside(name, check_vma):
    body, w_spec, x_spec, out = LAYOUTS[name]
    fn = jax.shard_map(
        body, mesh=mesh(), in_specs=(w_spec, x_spec), out_specs=out, check_vma=check_vma
    )
    check(fn, W, X)


def test_experts_on_devices():
    """Each device holds its own experts; a stacked axis is split in both factors."""

    def body(w, x):
        return lax.psum(jnp.einsum("bi,eij->ebj", x, w).sum(0), "a")

    fn = jax.shard_map(body, mesh=mesh(), in_specs=(P("a"), P()), out_specs=P())
    check(fn, weight(1, (4, 6, 8), "smn"), X)


def stacked_members(n):
    return weight(2, (6, 8), "mn"), rows(n, 6, 2), rows(n, 8, 2, seed=3), jnp.arange(1.0, n + 1)


@pytest.mark.parametrize("check_vma", [True, False])
def test_members_spread_over_devices_around_the_transform(check_vma):
    """The usual way to run a population: members are split, the base is on every device."""
    w, left, right, gain = stacked_members(4)
    score = factored(lambda w: jax.nn.relu(X @ w) @ jnp.ones(8), densify_limit=0)

    def body(base, left, right, gain):
        member = lambda l, r, g: score(Factored(base, l, r, g, "mn"))
        return jax.vmap(member)(left, right, gain)

    split = (P(), *[P(("a", "b"))] * 3)
    run = jax.shard_map(
        body, mesh=mesh(), in_specs=split, out_specs=P(("a", "b")), check_vma=check_vma
    )
    out = jax.jit(run)(w.base, left, right, gain)
    for i in range(4):
        dense = dense_numpy(Factored(w.base, left[i], right[i], gain[i], "mn"))
        close(out[i], jax.nn.relu(X @ dense) @ jnp.ones(8), 1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_forward_of_a_sharded_population_has_no_collective(kind):
    w, left, right, gain = stacked_members(8)
    members = NamedSharding(mesh(kind), P(("a", "b")))
    everywhere = NamedSharding(mesh(kind), P())
    base, x = jax.device_put((w.base, X), everywhere)
    left_d, right_d, gain_d = jax.device_put((left, right, gain), members)
    spread = Factored(base, left_d, right_d, gain_d, "mn")
    run = factored(lambda w, x: jnp.tanh(x @ w) @ w.T, densify_limit=0)
    axes = in_axes(w, 0, 0)
    whole = jax.jit(jax.vmap(run, in_axes=(axes, None)))
    text = compiled_text(whole.lower(spread, x))
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    out = np.asarray(whole(spread, x))
    dense = dense_numpy(Factored(w.base, left[5], right[5], gain[5], "mn"))
    close(out[5], jnp.tanh(X @ dense) @ dense.T, 1e-5)


def test_a_layout_wish_concerns_the_base_alone():
    spec = NamedSharding(mesh(), P("a", "b"))
    fn = lambda w, x: x @ lax.with_sharding_constraint(w, spec)
    check(fn, W, X)
    jaxpr = jax.make_jaxpr(factored(fn))(W, X)
    wishes = [e for e in equations(jaxpr) if e.primitive.name == "sharding_constraint"]
    assert [e.invars[0].aval.shape for e in wishes] == [(6, 8)]
