"""What is perturbed and how: the static half of a population.

A `Perturbation` is hashable and holds no arrays. It turns (seed, epoch, pairs) into factors, and
parameters plus the factors of one pair plus a gain into parameters that `factored(fn)` can run on.
Neither ever forms a weight per member.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.compat import once
from springroll.errors import InputError, expect
from springroll.noise import counter
from springroll.noise.kinds import Noise
from springroll.quant.int8_weights import is_int8
from springroll.thin.factored_array import Factored, common_type
from springroll.trees import KeyPath, PyTree, path_of

AXIS = "population"  # the mesh axis over which pairs are split

Kind: TypeAlias = Literal["low-rank", "dense", "frozen"]
Factors: TypeAlias = dict[str, tuple[Array, ...]]  # path -> (left, right), or (noise,)


@dataclass(frozen=True)
class Leaf:
    """How one parameter is perturbed."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    roles: str = ""  # a letter per axis: s shared, m left, n right; of dense ones only leading s
    stack: int | None = None  # layers of the stack of which this is a slice; None: it is no slice

    @property
    def numbers(self) -> np.dtype | None:
        """The type of its numbers; None of random keys, which hold none."""
        try:
            return jnp.dtype(self.dtype)
        except TypeError:
            return None

    @property
    def stacked(self) -> int:
        """How many leading axes are shared.

        Factors have their pairs behind these axes: a scan over layers then slices them as they
        lie, instead of copying all factors of the population once per forward.
        """
        return len(self.roles) - len(self.roles.lstrip("s"))

    def side(self, letter: str) -> tuple[int, ...]:
        """Axes of the left ("m") or right ("n") factor behind the leading shared ones."""
        k = self.stacked
        pairs = zip(self.shape[k:], self.roles[k:], strict=True)
        return tuple(size for size, role in pairs if role in ("s", letter))

    def numbers_per_pair(self, rank: int) -> int:
        if self.kind == "frozen":
            return 0
        if self.kind == "dense":
            return math.prod(self.shape)
        both = math.prod(self.side("m")) + math.prod(self.side("n"))
        return math.prod(self.shape[: self.stacked]) * both * rank


class AttachLeaf(Protocol):
    """Puts the factors of one pair on one parameter; `sign` (+-1) and `sigma` are float32 scalars.

    The default is `attach_real`; integer weights bring their own. The result is what
    `sr.factored` accepts: an array, or a `Factored`.
    """

    def __call__(
        self,
        perturbation: "Perturbation",
        leaf: Leaf,
        base: Array,
        factors: tuple[Array, ...],
        sign: Array,
        sigma: Array,
    ) -> "Array | Factored": ...


def attach_real(
    perturbation: "Perturbation",
    leaf: Leaf,
    base: Array,
    factors: tuple[Array, ...],
    sign: Array,
    sigma: Array,
) -> Array | Factored:
    """`base + sign * sigma * E` in real arithmetic: thin for low-rank leaves, formed for dense."""
    gain = sign * sigma * jnp.float32(perturbation.scale(leaf))
    if leaf.kind == "dense":
        wide = common_type(base.dtype, jnp.float32)
        noise = gain * factors[0].astype(jnp.float32)
        return (base.astype(wide) + noise.astype(wide)).astype(base.dtype)
    left, right = factors
    return Factored(base=base, left=left, right=right, gain=gain, roles=leaf.roles)


class DrawLeaf(Protocol):
    """Draws one parameter's factors, of the shapes that `Perturbation.draw` describes.

    The default is `draw_counted`. What it returns must depend on (seed, epoch, parameter, pair) and
    on nothing else, so that a run does not depend on how it is split.
    """

    def __call__(
        self, perturbation: "Perturbation", leaf: Leaf, seed: Array, epoch: Array, pairs: Array
    ) -> tuple[Array, ...]: ...


def draw_counted(
    perturbation: "Perturbation",
    leaf: Leaf,
    seed: Array,
    epoch: Array,
    pairs: Array,
    first: Array | None = None,
) -> tuple[Array, ...]:
    """The perturbation's kind of noise at its counted address.

    `first` () is where a slice of a stack begins, counted in layers of the stack.
    """
    shared, rank = leaf.shape[: leaf.stacked], perturbation.rank
    words = counter.stream(seed, epoch, leaf.path)
    size = leaf.numbers_per_pair(rank) // max(1, math.prod(shared))
    if shared:
        layers = jnp.arange(math.prod(shared), dtype=jnp.uint32)
        if first is not None:
            layers = layers + first.astype(jnp.uint32) * np.uint32(math.prod(shared[1:]))
        streams = counter.fold(words[None], layers)
        flat = jax.vmap(lambda w: perturbation.noise.sample(w, pairs, size))(streams)
    else:
        flat = perturbation.noise.sample(words, pairs, size)
    lead = (*shared, pairs.shape[0])
    if leaf.kind == "dense":
        return (flat.reshape(*lead, *leaf.shape[leaf.stacked :]),)
    m, n = leaf.side("m"), leaf.side("n")
    cut = math.prod(m) * rank
    left = flat[..., :cut].reshape(*lead, *m, rank)
    right = flat[..., cut:].reshape(*lead, *n, rank)
    return left, right


def draw_slice(
    perturbation: "Perturbation",
    leaf: Leaf,
    seed: Array,
    epoch: Array,
    pairs: Array,
    first: Array,
) -> tuple[Array, ...]:
    """The factors of a slice of a stack, as they are in those of the whole stack.

    Where the layers share their noise's address (a matrix made of the vectors of all layers), that
    of the stack is drawn and cut.
    """
    if leaf.stacked:
        return draw_counted(perturbation, leaf, seed, epoch, pairs, first)
    assert leaf.stack is not None
    full = replace(leaf, shape=(leaf.stack, *leaf.shape[1:]))
    drawn = draw_counted(perturbation, full, seed, epoch, pairs)
    cut = lambda x: lax.dynamic_slice_in_dim(x, first, leaf.shape[0], 1)
    if leaf.kind == "dense":
        return (cut(drawn[0]),)
    left, right = drawn
    return (cut(left), right) if leaf.roles[0] == "m" else (left, cut(right))


@dataclass(frozen=True)
class Perturbation:
    """Static description of a population's noise; everything random is an argument.

    A low-rank leaf gets `E = scale^2 / sqrt(rank) * left @ right.T`, a dense one `E = scale *
    noise`, so that every entry of E has zero mean and unit variance. Member `2 * pair` stands at
    `+sigma E` and `2 * pair + 1` at `-sigma E`; without `antithetic` each member is its own pair.
    """

    leaves: tuple[Leaf, ...]
    rank: int
    noise: Noise
    antithetic: bool = True
    stored: bool = True  # factors are drawn once per generation and kept; else redrawn where used
    pairs_per_chunk: int | None = None  # pairs that are drawn or run at once; None: all
    attach_leaf: AttachLeaf = attach_real
    draw_leaf: DrawLeaf = draw_counted
    mesh: jax.sharding.Mesh | None = None

    @property
    def signs(self) -> tuple[int, ...]:
        return (1, -1) if self.antithetic else (1,)

    @property
    def evolved(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.leaves if leaf.kind != "frozen")

    def bytes_per_pair(self) -> int:
        numbers = sum(leaf.numbers_per_pair(self.rank) for leaf in self.leaves)
        return numbers * self.noise.bytes_per_number

    def scale(self, leaf: Leaf) -> float:
        """What raw samples are multiplied by to make the entries of E of unit variance."""
        if leaf.kind == "dense":
            return self.noise.scale
        return self.noise.scale**2 / math.sqrt(self.rank)

    def draw(
        self,
        seed: Array,
        epoch: Array,
        pairs: Array,
        leaves: tuple[Leaf, ...] | None = None,
        first: Array | None = None,
    ) -> Factors:
        """Raw factors of `pairs` (P,) uint32 for `leaves` (default: all), in the noise's dtype.

        Low-rank: left (*shared, P, *m axes, rank) and right (*shared, P, *n axes, rank), where
        *shared are the leading shared axes; dense: (*shared, P, *rest). `seed` (2,) uint32, `epoch`
        integer. Of a slice of a stack `first` () is its first layer.
        """
        leaves = self.evolved if leaves is None else leaves
        one = self.draw_leaf if first is None else functools.partial(draw_slice, first=first)
        return once(
            lambda: {leaf.path: one(self, leaf, seed, epoch, pairs) for leaf in leaves}, epoch
        )

    def pair_axes(self) -> dict[str, int]:
        """The axis of each leaf's factors that counts pairs."""
        return {leaf.path: leaf.stacked for leaf in self.evolved}

    def attach(self, params: PyTree, factors: Factors, sign: Array, sigma: Array) -> PyTree:
        """Parameters of one member: one pair's `factors`, `sign` (+-1) and `sigma`, float32."""
        by_path = {leaf.path: leaf for leaf in self.evolved}

        def one(path: KeyPath, base: PyTree) -> PyTree:
            leaf = by_path.get(values_path(path) if is_int8(base) else path_of(path))
            if leaf is None:
                return base
            if not is_int8(base):
                return self.attach_leaf(self, leaf, base, factors[leaf.path], sign, sigma)
            in_units = in_steps(leaf, base.scale, factors[leaf.path])
            values = self.attach_leaf(self, leaf, base.values, in_units, sign, sigma)
            return replace(base, values=values)

        return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_int8)


def values_path(path: KeyPath) -> str:
    """The path of the numbers of an `Int8` at `path`."""
    return path_of((*path, jax.tree_util.GetAttrKey("values")))


def in_steps(leaf: Leaf, scale: Array, factors: tuple[Array, ...]) -> tuple[Array, ...]:
    """One pair's factors of an `Int8` weight (..., out, in) in units of each channel's steps.

    W + gain left @ right.T = scale (values + gain left @ right.T / scale): the factor that carries
    the channels is divided by their scale (..., out). So sigma and the update are in the units of
    the weights, whatever the grid is.
    """
    left, right = factors
    by_channel = lambda x: x.astype(jnp.float32) / scale[..., None]
    return (by_channel(left), right) if leaf.roles[-2] == "m" else (left, by_channel(right))


def auto_mesh(mesh: jax.sharding.Mesh | None) -> jax.sharding.Mesh | None:
    """The mesh with axes that the compiler shards, so that `shard_map` takes arrays from anywhere.

    Raises InputError if it has no axis "population".
    """
    if mesh is None:
        return None
    expect(isinstance(mesh, jax.sharding.Mesh), "mesh", mesh, "a jax.sharding.Mesh")
    if AXIS not in mesh.axis_names:
        raise InputError(f"mesh has axes {list(mesh.axis_names)}; expected one named {AXIS!r}")
    types = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
    return jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=types)
