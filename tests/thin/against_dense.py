"""The slow obvious version: form every member's weights in NumPy and call the plain function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from springroll.thin.factored_array import Factored
from springroll.thin.transform import factored

PAIRS = 2
FAST_TO_COMPILE: dict[str, bool | str] = {"xla_backend_optimization_level": "0"}


def is_factored(leaf):
    return isinstance(leaf, Factored)


def weight(
    seed,
    shape,
    roles,
    *,
    rank=2,
    dtype: DTypeLike = np.float32,
    gain: ArrayLike | tuple[float, ...] | None = 0.3,
    lattice=None,
    spread=20,
):
    """A random Factored; integer values up to `spread` in size when it is on a lattice."""
    rng = np.random.default_rng(seed)

    def draw(*sizes):
        if lattice is None:
            return jnp.asarray(rng.normal(size=sizes), dtype)
        return jnp.asarray(rng.integers(-spread, spread + 1, size=sizes), dtype)

    side = lambda carried: [n for n, r in zip(shape, roles, strict=True) if r in carried]
    gain = None if gain is None else jnp.asarray(gain, dtype if lattice else np.float32)
    left, right = draw(*side("sm"), rank), draw(*side("sn"), rank)
    return Factored(draw(*shape), left, right, gain, roles, lattice)


def dense_numpy(w):
    """base + gain * left @ right.T in float64, straight from the definition (no lattice)."""
    letters = "abcdefgh"[: len(w.roles)]
    side = lambda carried: "".join(c for c, r in zip(letters, w.roles, strict=True) if r in carried)
    gain = np.ones(()) if w.gain is None else np.asarray(w.gain, np.float64)
    thin = np.einsum(
        f"{side('sm')}z,{side('sn')}z->{letters}",
        np.asarray(w.left, np.float64) * gain,
        np.asarray(w.right, np.float64),
    )
    return jnp.asarray(np.asarray(w.base, np.float64) + thin, w.dtype)


def weights(params):
    """The Factored leaves of a tree."""
    return [w for w in jax.tree.leaves(params, is_leaf=is_factored) if is_factored(w)]


def replace(w, left, right, gain):
    return Factored(w.base, left, right, gain, w.roles, w.lattice)


def in_axes(w, factors, gain):
    """Like `w`, with the axes over which `jax.vmap` maps its factors and its gain."""
    return dataclasses.replace(w, base=None, left=factors, right=factors, gain=gain)


def compiled_text(lowered):
    """The program that XLA made of `jax.jit(fn).lower(...)`."""
    text = lowered.compile().as_text()
    assert text is not None
    return text


def population(params):
    """(params with factors stacked over pairs and gains over signs, outer axes, inner axes)."""

    def stack(w):
        if not is_factored(w):
            return w
        left = jnp.stack([w.left, w.left[..., ::-1] * 2])
        right = jnp.stack([w.right, w.right * -1])
        gain = None if w.gain is None else jnp.stack([w.gain, -w.gain])
        return replace(w, left, right, gain)

    def axes(w, factors, sign):
        if not is_factored(w):
            return None
        return in_axes(w, factors, None if w.gain is None else sign)

    tree = lambda go: jax.tree.map(go, params, is_leaf=is_factored)
    return tree(stack), tree(lambda w: axes(w, 0, None)), tree(lambda w: axes(w, None, 0))


def member(stacked, pair, sign, dense=dense_numpy):
    """The dense parameters of one member of a stacked population."""

    def one(w):
        if not is_factored(w):
            return w
        gain = None if w.gain is None else w.gain[sign]
        return dense(replace(w, w.left[pair], w.right[pair], gain))

    return jax.tree.map(one, stacked, is_leaf=is_factored)


def over_population(fn, params, **options):
    """fn over pairs and signs: (vmapped function of (params, *args), stacked params)."""
    stacked, outer, inner = population(params)
    signed = any(
        w.gain is not None for w in jax.tree.leaves(params, is_leaf=is_factored) if is_factored(w)
    )
    run = factored(fn, **options)

    def whole(params, *args):
        plain = (None,) * len(args)
        one = jax.vmap(run, in_axes=(inner, *plain)) if signed else run
        return jax.vmap(one, in_axes=(outer, *plain))(params, *args)

    return whole, stacked, signed


def check(fn, params, *args, tol=2e-5, dense=dense_numpy, may_form=False):
    """fn on a population of thin weights equals fn on every member's dense weights.

    Nothing is densified, and no array of the program has the shape (members, *weight).
    """
    whole, stacked, signed = over_population(fn, params, densify_limit=0)
    traced = jax.jit(whole).trace(stacked, *args)
    if not may_form:
        assert formed(traced.jaxpr, params) == []
    ours = traced.lower().compile(FAST_TO_COMPILE)(stacked, *args)
    plain = jax.jit(fn, compiler_options=FAST_TO_COMPILE)
    for pair in range(PAIRS):
        for sign in range(2 if signed else 1):
            expected = plain(member(stacked, pair, sign, dense), *args)
            got = jax.tree.map(lambda a, at=(pair, sign) if signed else pair: a[at], ours)
            jax.tree.map(lambda a, b: close(a, b, tol), got, expected)


def close(got, expected, tol):
    assert got.dtype == expected.dtype
    if tol == 0:
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
        return
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(got, expected, rtol=tol, atol=tol * scale)


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs inside it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


def formed(jaxpr, params):
    """Shapes in a program that are a whole weight per member (per pair, or per pair and sign)."""
    bad = {
        (*lead, *w.shape) for w in weights(params) for lead in ((PAIRS,), (PAIRS, 2), (2, PAIRS))
    }
    return [v.aval.shape for e in equations(jaxpr) for v in e.outvars if v.aval.shape in bad]
