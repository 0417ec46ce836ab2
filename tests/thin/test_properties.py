"""Laws of low-rank weights at any shape, layout and role: exactly what the formed weight gives.

All numbers are small integers (gains: halves), so that float32 sums are exact in any order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.thin import Factored, Lattice, discover, factored
from tests.thin.against_dense import FAST_TO_COMPILE, dense_numpy, weight

few = settings(max_examples=15, deadline=None, derandomize=True)


@st.composite
def role_strings(draw, letters="smn"):
    """2 to 4 letters, m and n among them."""
    others = draw(st.lists(st.sampled_from(letters), max_size=2))
    return "".join(draw(st.permutations([*"mn", *others])))


@st.composite
def factored_weights(draw, ranks=(1, 2, 3), **options):
    """A Factored of any roles, sizes, rank and kind of gain."""
    roles, seed = draw(role_strings()), draw(st.integers(0, 2**16))
    shape = draw(st.lists(st.integers(1, 4), min_size=len(roles), max_size=len(roles)))
    rank = draw(st.sampled_from(ranks))
    rng = np.random.default_rng(seed)
    integers = lambda sizes: jnp.asarray(rng.integers(-3, 4, sizes), jnp.float32)
    side = lambda carried: [n for n, r in zip(shape, roles, strict=True) if r in carried]
    gains = {"none": None, "scalar": integers(()) / 2, "vector": integers(rank) / 2}
    return Factored(
        integers(shape),
        integers([*side("sm"), rank]),
        integers([*side("sn"), rank]),
        gains[draw(st.sampled_from(sorted(gains)))],
        roles,
    )


def run(fn, *args):
    return np.asarray(jax.jit(fn, compiler_options=FAST_TO_COMPILE)(*args))


@few
@given(factored_weights(ranks=(1, 3, 9)))
def test_dense_is_exact(w):
    """Rank 9 is above the rank from which it is a matrix product."""
    np.testing.assert_array_equal(run(lambda w: w.dense(), w), dense_numpy(w))


@few
@given(role_strings(), st.data())
def test_dense_of_a_lattice_is_exact(roles, data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=len(roles), max_size=len(roles)))
    gain, rounding = data.draw(st.sampled_from([(1, "nearest"), (-1, "nearest"), (-1, "floor")]))
    lattice = Lattice(2.0**-4, rounding)
    w = weight(len(shape), shape, roles, dtype=np.int8, gain=gain, lattice=lattice, spread=60)
    letters = "abcd"[: len(roles)]
    side = lambda carried: "".join(c for c, r in zip(letters, roles, strict=True) if r in carried)
    total = np.asarray(w.base, np.int64)
    for j in range(w.rank):
        left, right = np.asarray(w.left, np.int64)[..., j], np.asarray(w.right, np.int64)[..., j]
        product = gain * np.einsum(f"{side('sm')},{side('sn')}->{letters}", left, right)
        total = total + (np.rint if rounding == "nearest" else np.floor)(product / 16).astype(int)
    np.testing.assert_array_equal(run(lambda w: w.dense(), w), np.clip(total, -127, 127))


@st.composite
def contractions(draw, ndim):
    """An einsum of x with a weight: its axes are summed, kept or batched, in any order."""
    letters = "abcd"[:ndim]
    uses = draw(
        st.lists(st.sampled_from(["summed", "kept", "batch"]), min_size=ndim, max_size=ndim)
    )
    summed_or_batch = [c for c, use in zip(letters, uses, strict=True) if use != "kept"]
    in_output = [c for c, use in zip(letters, uses, strict=True) if use != "summed"]
    x = draw(st.permutations(["z", *summed_or_batch]))
    out = draw(st.permutations(["z", *in_output]))
    return f"{''.join(x)},{letters}->{''.join(out)}"


def activation(spec, shape, seed=0):
    sizes = dict(zip("abcd", shape, strict=False), z=2)
    x = spec.split(",")[0]
    return np.random.default_rng(seed).integers(-3, 4, [sizes[c] for c in x]).astype(np.float32)


@few
@given(factored_weights(), st.data())
def test_any_contraction_equals_that_of_the_formed_weight(w, data):
    """Whatever roles the axes have, and without forming the weight."""
    spec = data.draw(contractions(w.ndim))
    x = activation(spec, w.shape)
    ours = run(factored(lambda w, x: jnp.einsum(spec, x, w), densify_limit=0), w, x)
    np.testing.assert_array_equal(ours, np.einsum(spec, x, dense_numpy(w)))


@st.composite
def moves(draw, shape):
    """A function that moves the axes of an array of this shape in two ways, and its name."""
    order = draw(st.permutations(range(len(shape))))
    axis = draw(st.integers(0, len(shape) - 1))
    second = draw(st.sampled_from(["rev", "pad", "slice", "concatenate", "repeat"]))

    def move(w, np_or_jnp):
        w = np_or_jnp.transpose(w, order)
        if second == "rev":
            return np_or_jnp.flip(w, axis)
        if second == "pad":
            return np_or_jnp.pad(w, [(int(i == axis), 0) for i in range(w.ndim)])
        if second == "slice":
            return w[tuple(slice(0, 2) if i == axis else slice(None) for i in range(w.ndim))]
        if second == "concatenate":
            return np_or_jnp.concatenate([w, w * 2], axis)
        return np_or_jnp.repeat(w, 2, axis)

    return move


@few
@given(factored_weights(), st.data())
def test_moved_weights_equal_the_moved_formed_weight(w, data):
    move = data.draw(moves(w.shape))
    expected = move(np.asarray(dense_numpy(w)), np)
    letters = "abcd"[: w.ndim]
    x = activation(f"{letters},", expected.shape)
    fn = lambda w, x: jnp.einsum(f"{letters},{letters}->", x, move(w, jnp))
    ours = run(factored(fn, densify_limit=None), w, x)
    np.testing.assert_array_equal(ours, np.sum(x * expected))


@few
@given(st.data())
def test_discovered_roles_run_without_forming_the_weight(data):
    ndim = data.draw(st.integers(2, 4))
    shape = data.draw(st.lists(st.integers(2, 4), min_size=ndim, max_size=ndim))
    spec = data.draw(contractions(ndim))
    x = activation(spec, shape)
    fn = lambda p, x: jnp.einsum(spec, x, p["w"])
    role = discover(fn, {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, x)["w"]
    if role.roles is None:  # at most one axis is not shared
        assert role.kind == "dense"
        return
    w = weight(ndim, shape, role.roles, gain=None, rank=1)
    w = jax.tree.map(jnp.round, w)
    ours = run(factored(fn, densify_limit=0), {"w": w}, x)
    np.testing.assert_array_equal(ours, np.einsum(spec, x, dense_numpy(w)))
