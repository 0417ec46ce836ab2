"""The value type: what it stands for, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.thin.factored_array import Blocks, Lattice, saturate
from springroll.thin.transform import factored
from tests.thin.against_dense import dense_numpy, equations, in_axes, weight

LAYOUTS = [
    ((5, 4), "mn"),
    ((5, 4), "nm"),
    ((3, 5, 4), "smn"),
    ((5, 2, 4), "mnn"),
    ((2, 4, 5), "mmn"),
    ((4, 3, 5), "nsm"),
    ((2, 3, 2, 4), "mmmn"),
    ((2, 3, 4, 5), "ssmn"),
]


@pytest.mark.parametrize(("shape", "roles"), LAYOUTS)
@pytest.mark.parametrize("gain", [None, 0.3, (0.5, -2.0)])
def test_dense_is_the_definition(shape, roles, gain):
    w = weight(0, shape, roles, gain=gain)
    assert (w.shape, w.ndim, w.rank, w.dtype) == (shape, len(shape), 2, np.float32)
    np.testing.assert_allclose(w.dense(), dense_numpy(w), rtol=1e-5, atol=1e-5)


def test_dense_of_short_floats_rounds_once():
    w = weight(1, (6, 5), "mn", dtype=jnp.bfloat16)
    assert w.dense().dtype == jnp.bfloat16
    np.testing.assert_array_equal(w.dense(), dense_numpy(w))


def test_map_names_the_axes_that_each_part_carries():
    w = weight(2, (3, 5, 4), "smn")
    seen = []
    w.map(lambda a, axes: seen.append((a.shape, axes)) or a)
    assert seen == [((3, 5, 4), (0, 1, 2)), ((3, 5, 2), (0, 1)), ((3, 4, 2), (0, 2))]
    doubled = w.map(lambda a, axes: a * 2 if len(axes) == 3 else a)
    np.testing.assert_allclose(doubled.dense() - w.dense(), w.base, rtol=1e-4, atol=1e-5)


def test_it_is_a_pytree_whose_parts_vmap_apart():
    w = weight(3, (4, 3), "mn")
    leaves, tree = jax.tree.flatten(w)
    assert len(leaves) == 4
    assert jax.tree.unflatten(tree, leaves).roles == "mn"
    pair = dataclasses.replace(w, gain=jnp.array([0.3, -0.3]))
    axes = in_axes(w, None, 0)
    both = jax.vmap(lambda w: w.dense(), in_axes=(axes,))(pair)
    np.testing.assert_allclose(both[0] + both[1], 2 * w.base, rtol=1e-5, atol=1e-6)


def test_int8_saturates_and_wider_types_do_not():
    big = jnp.array([-300, -128, 5, 127, 300], jnp.int32)
    assert saturate(big, jnp.int8).tolist() == [-127, -127, 5, 127, 127]
    assert saturate(big, jnp.float32).tolist() == big.tolist()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": 0.0}, "must be positive"),
        ({"scale": 0.3, "rounding": "floor"}, "power of two"),
        ({"scale": 2.0, "rounding": "floor"}, "power of two"),
        ({"scale": 1.0, "rounding": "up"}, "'nearest' or 'floor'"),
    ],
)
def test_a_lattice_that_makes_no_sense_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        Lattice(**options)


def _broken():
    w = weight(4, (4, 3), "mn")
    yield dataclasses.replace(w, roles="mnn"), "one of s, m, n per axis"
    yield dataclasses.replace(w, roles="mx"), "one of s, m, n per axis"
    yield dataclasses.replace(w, left=w.right), "left has shape"
    yield dataclasses.replace(w, right=w.right[:, :1]), "must be equal"
    yield dataclasses.replace(w, gain=jnp.ones(3)), "gain has shape"
    yield dataclasses.replace(w, base=w.base.astype(jnp.int32)), "needs a lattice"
    yield dataclasses.replace(w, left=w.left[:, :0], right=w.right[:, :0]), "rank 0"


@pytest.mark.parametrize(("w", "says"), list(_broken()), ids=lambda v: v if type(v) is str else "")
def test_parts_that_do_not_fit_name_the_parameter(w, says):
    with pytest.raises(InputError, match=says) as error:
        factored(lambda p: p["layer"]["w"] * 1)({"layer": {"w": w}})
    assert str(error.value).startswith("layer/w")
    assert "\n" not in str(error.value)


def test_codes_with_a_real_thin_term_are_converted_first():
    """Weight-only int8: the thin term is in units of the codes until they become real."""
    w = weight(3, (30, 25), "mn", rank=9, gain=None)
    codes = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (30, 25)), jnp.int8)
    w = dataclasses.replace(w, base=codes)
    x = jnp.ones((2, 30))
    run = factored(lambda w, x: (x @ w.astype(jnp.float32)) * 0.1, densify_limit=0)
    real = codes.astype(jnp.float32)
    expected = x @ (real + w.left @ w.right.T) * 0.1
    np.testing.assert_allclose(run(w, x), expected, rtol=1e-5)
    nearest = jnp.round(real + w.left @ w.right.T).astype(jnp.int8)
    np.testing.assert_array_equal(w.dense(), nearest)
    np.testing.assert_array_equal(
        dataclasses.replace(w, left=w.left[:, :2], right=w.right[:, :2]).dense(),
        jnp.round(real + w.left[:, :2] @ w.right[:, :2].T).astype(jnp.int8),
    )
    with pytest.raises(InputError, match="cannot stay low-rank"):
        factored(lambda w, x: x.astype(jnp.int8) @ w, densify_limit=0)(w, x)


def test_many_components_are_one_product():
    for roles, shape in (
        ("mn", (6, 5)),
        ("snm", (3, 6, 5)),
        ("nsm", (4, 3, 5)),
        ("nnm", (4, 3, 5)),
    ):
        w = weight(4, shape, roles, rank=9)
        np.testing.assert_allclose(w.dense(), dense_numpy(w), rtol=1e-5, atol=1e-5)


def test_blocks_of_factors_are_joined_where_they_are_used():
    w, v = (weight(i, (3, 6, 6), "smn", gain=None) for i in (5, 6))
    sums = dataclasses.replace(w, left=Blocks((w.left, v.left)), right=Blocks((w.right, v.right)))
    layers = lambda w, x: jax.lax.scan(lambda x, l: (jnp.tanh(x @ l), None), x, w)[0]
    expected = layers(dense_numpy(w) + dense_numpy(v) - v.base, jnp.ones((2, 6)))
    run = factored(layers, densify_limit=0)
    np.testing.assert_allclose(run(sums, jnp.ones((2, 6))), expected, rtol=1e-4)
    joined = (3, 6, 4)
    jaxpr = jax.make_jaxpr(run)(sums, jnp.ones((2, 6)))
    assert all(out.aval.shape != joined for eqn in equations(jaxpr) for out in eqn.outvars)
