"""Integer weights: exact products, rounded thin terms, equal bits in int8 and float registers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.thin.factored_array import Lattice
from springroll.thin.transform import factored
from tests.thin.against_dense import compiled_text, equations, over_population, weight

LATTICES = [
    Lattice(2.0**-8, "nearest"),
    Lattice(0.037, "nearest"),
    Lattice(2.0**-8, "floor"),
    Lattice(2.0**-3, "floor"),
]
lattices = pytest.mark.parametrize("lattice", LATTICES, ids=lambda v: f"{v.rounding}-{v.scale:g}")


def integer_weight(seed, shape, roles, lattice, *, rank=1, gain: int | None = 1):
    return weight(
        seed, shape, roles, rank=rank, gain=gain, lattice=lattice, dtype=np.int8, spread=127
    )


def in_floats(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def run(fn, **options):
    return jax.jit(factored(fn, **options))


def shifted(p, lattice):
    return p >> round(-np.log2(lattice.scale))


def nearest(p, gain, lattice):
    scaled = p.astype(np.float32) * np.float32(gain) * np.float32(lattice.scale)
    return np.rint(scaled).astype(np.int64)


def parts(w):
    return [np.asarray(v).astype(np.int64) for v in (w.base, w.left, w.right)]


def gains(w):
    gain = 1 if w.gain is None else np.asarray(w.gain)
    return np.broadcast_to(gain, w.rank)


def reference_dot(x, w):
    """x @ w for roles mn, from the definition: the exact base product plus rounded components."""
    base, left, right = parts(w)
    x = x.astype(np.int64)
    total = x @ base
    for j, gain in enumerate(gains(w)):
        t, other = (x @ left[:, j])[..., None], right[:, j]
        if w.lattice.rounding == "floor":
            total += shifted(int(gain) * t * other, w.lattice)
        else:
            total += nearest(t, gain, w.lattice) * other
    return total


def reference_dense(w):
    """The thin weight itself: every entry of every component is rounded."""
    base, left, right = parts(w)
    total = base
    for j, gain in enumerate(gains(w)):
        p = left[:, j][:, None] * right[:, j]
        floor = w.lattice.rounding == "floor"
        total = total + (
            shifted(int(gain) * p, w.lattice) if floor else nearest(p, gain, w.lattice)
        )
    return total


def activations(*shape):
    return jnp.asarray(np.random.default_rng(5).integers(-127, 128, shape), jnp.int8)


def aligned(w):
    """The input that makes t, and so the products p, as large as they get."""
    return w.left[:, 0]


def product(w, x):
    kind = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    return jnp.matmul(x, w, preferred_element_type=kind)


@lattices
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", [(64,), (4, 64)])
def test_dot_is_exact_and_equal_in_both_registers(lattice, rank, shape):
    w = integer_weight(0, (64, 7), "mn", lattice, rank=rank, gain=-1)
    x = aligned(w) if shape == (64,) else activations(*shape)
    dot = run(product)
    whole = dot(w, x)
    assert whole.dtype == jnp.int32
    np.testing.assert_array_equal(whole, reference_dot(np.asarray(x), w))
    floats = dot(in_floats(w), x.astype(jnp.float32))
    assert floats.dtype == jnp.float32
    np.testing.assert_array_equal(floats.astype(jnp.int32), whole)


def test_float_registers_ask_for_exact_products():
    """A GPU would otherwise round the inputs of a float32 product to 10 bits."""
    w = in_floats(integer_weight(0, (64, 7), "mn", LATTICES[0]))
    jaxpr = jax.make_jaxpr(factored(product))(w, activations(4, 64).astype(jnp.float32))
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    highest = jax.lax.Precision.HIGHEST
    assert [e.params["precision"] for e in products] == [(highest, highest)] * 2


@lattices
def test_antithetic_pairs_share_factors(lattice):
    w, x = integer_weight(1, (16, 7), "mn", lattice), activations(3, 16)
    whole, stacked, _ = over_population(product, w, densify_limit=0)
    out = jax.jit(whole)(stacked, x)
    for pair in range(2):
        for sign in range(2):
            one = dataclasses.replace(
                w, left=stacked.left[pair], right=stacked.right[pair], gain=stacked.gain[sign]
            )
            np.testing.assert_array_equal(out[pair, sign], reference_dot(np.asarray(x), one))


@lattices
def test_transposed_use_rounds_the_other_way_round(lattice):
    """x @ w.T sums over the n axis: t meets right first, then left."""
    w, x = integer_weight(2, (7, 16), "mn", lattice), activations(3, 16)
    swapped = dataclasses.replace(w, base=w.base.T, left=w.right, right=w.left)
    got = run(lambda w, x: product(w.T, x))(w, x)
    np.testing.assert_array_equal(got, reference_dot(np.asarray(x), swapped))


@lattices
def test_lookup_and_dense_clip_int8_and_not_floats(lattice):
    w = integer_weight(3, (20, 9), "mn", lattice)
    ids = jnp.array([[0, 19], [4, 4]])
    exact = reference_dense(w)
    clipped = np.clip(exact, -127, 127)
    dense = jax.jit(lambda w: w.dense())
    np.testing.assert_array_equal(dense(w), clipped)
    assert dense(w).dtype == jnp.int8
    np.testing.assert_array_equal(dense(in_floats(w)), exact)
    take = run(lambda w, ids: w[ids])
    np.testing.assert_array_equal(take(w, ids), clipped[np.asarray(ids)])
    np.testing.assert_array_equal(take(in_floats(w), ids), exact[np.asarray(ids)])
    np.testing.assert_array_equal(run(lambda w: w[3])(w), clipped[3])


def test_the_shifted_products_exceed_the_exact_range_of_float32():
    """The tests above do cover products beyond 2^24: they are taken in int32."""
    _, left, right = parts(integer_weight(0, (64, 7), "mn", LATTICES[2]))
    t = left[:, 0] @ left[:, 0]  # the activation is aligned(w)
    assert np.abs(t * right[:, 0]).max() > 2**24


def test_a_real_gain_per_component():
    """On 'nearest' the gain holds sigma: any real number, also one per component."""
    w = integer_weight(10, (16, 7), "mn", LATTICES[0], rank=2)
    w = dataclasses.replace(w, gain=jnp.array([0.7, -1.3], jnp.float32))
    x = activations(3, 16)
    np.testing.assert_array_equal(run(product)(w, x), reference_dot(np.asarray(x), w))
    np.testing.assert_array_equal(w.dense(), np.clip(reference_dense(w), -127, 127))


def test_a_long_sum_leaves_float32_in_time():
    """2,000 terms of 127 * 127 pass 2^24; int8 inputs are then summed in int32."""
    w = integer_weight(11, (2000, 3), "mn", LATTICES[2])
    w = w.map(lambda a, axes: jnp.full_like(a, 1 if axes == (1,) else 127))
    x = jnp.full((2, 2000), 127, jnp.int8).at[0, 0].set(126)
    np.testing.assert_array_equal(run(product)(w, x), reference_dot(np.asarray(x), w))


def test_layers_scanned_and_sliced_stay_on_the_lattice():
    lattice = LATTICES[0]
    w, x = integer_weight(4, (3, 8, 8), "smn", lattice, rank=2), activations(2, 8)

    def squash(y):
        return jnp.clip(y >> 7, -127, 127).astype(jnp.int8)

    def scanned(w, x):
        return jax.lax.scan(lambda x, layer: (squash(product(layer, x)), None), x, w)[0]

    got = run(scanned, densify_limit=0)(w, x)
    for k in range(3):
        layer = dataclasses.replace(w, base=w.base[k], left=w.left[k], right=w.right[k], roles="mn")
        x = squash(jnp.asarray(reference_dot(np.asarray(x), layer), jnp.int32))
    np.testing.assert_array_equal(got, x)


def test_experts_stay_on_the_lattice():
    w, x = integer_weight(5, (2, 6, 5), "smn", LATTICES[2]), activations(4, 6)
    sizes = jnp.array([3, 1])
    dot = lambda w: jax.lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.int32)
    got = run(dot, densify_limit=0)(w)
    for row, expert in enumerate([0, 0, 0, 1]):
        one = dataclasses.replace(
            w, base=w.base[expert], left=w.left[expert], right=w.right[expert], roles="mn"
        )
        np.testing.assert_array_equal(got[row], reference_dot(np.asarray(x[row]), one))


def test_an_exact_negative_and_a_wider_register():
    w, x = integer_weight(6, (8, 5), "mn", LATTICES[0], gain=None), activations(3, 8)
    same = lambda w, x: x.astype(jnp.int32) @ -w.astype(jnp.int32)
    got = run(same, densify_limit=0)(w, x)
    np.testing.assert_array_equal(got, -reference_dot(np.asarray(x), w))


@pytest.mark.parametrize(
    "fn",
    [
        lambda w: w * 2,
        lambda w: w.sum(0),
        lambda w: jnp.einsum("ij,ij->", w, w.astype(jnp.int8) * 0 + 1),
        lambda w: (w > 0).astype(jnp.int8),
    ],
)
def test_rules_that_cannot_stay_exact_say_so(fn):
    w = integer_weight(7, (12, 9), "mn", LATTICES[0])
    with pytest.raises(InputError, match="cannot stay low-rank"):
        run(fn, densify_limit=0)(w)


def test_floor_does_not_commute_with_negation():
    w = integer_weight(8, (12, 9), "mn", LATTICES[2])
    with pytest.raises(InputError, match="'neg'"):
        run(lambda w: activations(2, 12) @ -w, densify_limit=0)(w)


def test_a_population_of_integer_members_forms_no_weight():
    w = integer_weight(9, (12, 9), "mn", LATTICES[0])
    x = activations(3, 12)
    whole, stacked, _ = over_population(product, w, densify_limit=0)
    text = compiled_text(jax.jit(whole).lower(stacked, x))
    assert "[2,12,9]" not in text and "[2,2,12,9]" not in text
