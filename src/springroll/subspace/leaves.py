"""One tree of parameters in three parts: frozen weights, what is trained, projectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.subspace.stored_basis import Basis, BasisBits, floats, met
from springroll.subspace.streams import Stream, ThinLeaf, axes_of, place
from springroll.thin.factored_array import Blocks, Factored
from springroll.trees import PyTree, named_leaves


@dataclass(frozen=True)
class Layout:
    """Which leaf of the parameters is what.

    A weight in a subspace stands for base + P S; S is kept as Sᵀ (stacked, outputs, rank), the
    `right` factor of `Factored`. The *trainable* tree has the structure of the parameters with Sᵀ
    in place of such a weight and None in place of what is not trained.
    """

    tree: PyTree  # the structure alone
    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    streams: tuple[Stream, ...]
    basis_bits: BasisBits = 32

    @classmethod
    def of(cls, params: PyTree, streams: Sequence[Stream], basis_bits: BasisBits = 32) -> Layout:
        leaves = named_leaves(params)
        shapes = [tuple(jnp.shape(leaf)) for leaf in leaves.values()]
        dtypes = [jnp.result_type(leaf) for leaf in leaves.values()]
        tree = jax.tree.structure(params)
        return cls(tree, tuple(leaves), tuple(shapes), tuple(dtypes), tuple(streams), basis_bits)

    @property
    def thin(self) -> dict[str, ThinLeaf]:
        return {user.path: user for stream in self.streams for user in stream.users}

    def check(self, params: PyTree) -> None:
        """Raise InputError unless `params` have the structure, shapes and types of the layout."""
        other = Layout.of(params, self.streams, self.basis_bits)
        if other.tree != self.tree:
            raise InputError("params have another structure than those the trainer was made for.")
        for path, shape, dtype, s, d in zip(
            self.paths, self.shapes, self.dtypes, other.shapes, other.dtypes, strict=True
        ):
            if (shape, dtype) != (s, d):
                raise InputError(
                    f"{path} is {d}{list(s)}; the trainer was made for {dtype}{list(shape)}."
                )

    def map(self, fn: Callable[..., PyTree], *trees: PyTree) -> PyTree:
        """fn(path, leaf, ...) over the leaves of trees with the parameters' structure."""
        leaves = [self.tree.flatten_up_to(t) for t in trees]
        return jax.tree.unflatten(
            self.tree, [fn(*group) for group in zip(self.paths, *leaves, strict=True)]
        )

    def trainable(self, params: PyTree, low: Mapping[str, Array]) -> PyTree:
        """What the optimizer sees: S in place of weights in subspaces, and all other floats."""
        real = lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None
        return self.map(lambda path, leaf: low[path] if path in low else real(leaf), params)

    def frozen(self, params: PyTree) -> PyTree:
        """What the hot step only reads: bases of thin weights, and leaves that are not floats."""
        thin = self.thin
        moves = lambda path, leaf: path not in thin and jnp.issubdtype(leaf.dtype, jnp.floating)
        return self.map(lambda path, leaf: None if moves(path, leaf) else leaf, params)

    def base(self, trainable: PyTree, frozen: PyTree) -> PyTree:
        """The parameters as of the last refresh: without P S."""
        return self.map(lambda _, new, old: new if old is None else old, trainable, frozen)

    def with_low(self, trainable: PyTree, low: Mapping[str, Array]) -> PyTree:
        """The trainable tree with these S."""
        return self.map(lambda path, leaf: low.get(path, leaf), trainable)

    def projected(
        self, trainable: PyTree, frozen: PyTree, projectors: Mapping[str, Basis]
    ) -> PyTree:
        """The trainable tree with the weights' own coordinates, (Pᵀ W)ᵀ + Sᵀ, in the place of Sᵀ.

        float32; as large as S, but it reads all of W.
        """
        thin = self.thin

        def one(path: str, low: Array, base: Array) -> Array:
            if path not in thin:
                return low
            user = thin[path]
            at = lambda letter: "".join(chr(ord("a") + i) for i in axes_of(user.roles, letter))
            all_axes = "".join(chr(ord("a") + i) for i in range(len(user.roles)))
            spec = f"{all_axes},{at('s') + at('m')}z->{at('s') + at('n')}z"
            wide = base.astype(jnp.float32)
            return low + jnp.einsum(spec, wide, floats(projectors[user.stream]))

        return self.map(one, trainable, frozen)

    def low(self, trainable: PyTree) -> dict[str, Array]:
        """path -> Sᵀ of every weight in a subspace."""
        thin = self.thin
        leaves = self.tree.flatten_up_to(trainable)
        return {path: leaf for path, leaf in zip(self.paths, leaves, strict=True) if path in thin}

    def weights(
        self,
        base: PyTree,
        left: Mapping[str, Basis | Blocks],
        right: Mapping[str, Array | Blocks],
        gains: Mapping[str, Array] | None = None,
    ) -> PyTree:
        """The parameters with `Factored` leaves; left and gains by stream, right by path."""
        thin = self.thin

        def one(path: str, leaf: Array) -> Array | Factored:
            if path not in thin:
                return leaf
            user = thin[path]
            p = place(met(left[user.stream]), user.roles, "sm")
            s = place(right[path], user.roles, "sn")
            gain = None if gains is None else gains[user.stream]
            return Factored(leaf, p, s, gain, user.roles, path=path)

        return self.map(one, base)

    def zeros(self) -> dict[str, Array]:
        """S = 0 for every thin weight, float32."""
        return {p: jnp.zeros((*user.sizes("sn"), user.rank)) for p, user in self.thin.items()}
