"""One forward pass of all rows: with the same weights for all, or with a member's own for each.

Weights and factors are stacked by layer where they are trained. A step that reads a slice of a
stack copies it first, and steps are many: `split_layers` and `split_groups` take the stacks apart
once, before them. Of weights the layers share the memory of their stack.
"""

import dataclasses

import jax
from jax import Array, lax

from springroll.evolve.perturbation import Factors, Leaf
from springroll.evolve.rows import Groups
from springroll.generate.views import slices
from springroll.models.protocols import Entries, Generative, Memory
from springroll.thin.transform import factored
from springroll.trees import PyTree

STACK = "layers"


def read(
    model: Generative,
    groups: Groups | None,
    params: PyTree,
    sign: Array,
    tokens: Array,
    lengths: Array,
    before: Entries | None = None,
) -> tuple[Array, Entries]:
    """`model.read` with sign (G, g), tokens (G, g, T), lengths (G, g); results are by row.

    `groups` are those of G pairs; None: all rows are of the weights themselves. `before`, by row,
    is what each has read before (see `Generative`).
    """
    known = () if before is None else (before,)
    if groups is None:
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        return model.read(params, flat(tokens), flat(lengths), *known)

    def row(
        weights: PyTree, tokens: Array, length: Array, *known: Entries
    ) -> tuple[Array, Entries]:
        known = jax.tree.map(lambda x: x[:, None], known)
        return factored(model.read)(weights, tokens[None], length[None], *known)

    known = jax.tree.map(lambda x: x.reshape(x.shape[0], *sign.shape, *x.shape[2:]), known)
    axes = (0, 0, *(1 for _ in known))
    rows = (tokens, lengths, *known)
    return _by_row(*groups.each_row(row, params, sign, *rows, in_axes=axes, out_axes=(0, 1)))


def step(
    model: Generative,
    groups: Groups | None,
    params: PyTree,
    sign: Array,
    tokens: Array,
    memory: Memory,
    seen: Array,
    clock: Array,
) -> tuple[Array, Entries]:
    """`model.step` with sign (G, g) and everything else by row, R = G g."""
    if groups is None:
        return model.step(params, tokens, memory, seen, clock)
    shape = sign.shape

    def row(weights: PyTree, token: Array, memory: Memory, seen: Array) -> tuple[Array, Entries]:
        memory = jax.tree.map(lambda x: x[:, None], memory)
        return factored(model.step)(weights, token[None], memory, seen[None], clock)

    split = lambda x: x.reshape(shape)
    memory = jax.tree.map(lambda x: x.reshape(x.shape[0], *shape, *x.shape[2:]), memory)
    rows = (split(tokens), memory, split(seen))
    return _by_row(*groups.each_row(row, params, sign, *rows, in_axes=(0, 1, 0), out_axes=(0, 1)))


def _by_row(logits: Array, entries: Entries) -> tuple[Array, Entries]:
    """Logits (G, g, 1, V) and what is remembered (L, G, g, 1, ...), both by row."""
    entries = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[4:]), entries)
    return logits.reshape(-1, logits.shape[-1]), entries


def split_layers(params: PyTree) -> PyTree:
    """The weights with a list of layers in the place of the stack, whose memory they share."""
    stacks, tree = jax.tree.flatten(params[STACK])
    layers = zip(*map(slices, stacks), strict=True)
    return {**params, STACK: [tree.unflatten(layer) for layer in layers]}


def split_groups(groups: Groups) -> Groups:
    """The same perturbations of the weights of `split_layers`."""
    perturbation = groups.perturbation
    leaves = tuple(part for leaf in perturbation.leaves for part in _leaves(leaf))
    factors: Factors = {}
    for leaf in perturbation.evolved:
        for i, part in enumerate(_leaves(leaf)):
            factors[part.path] = tuple(
                x if axis is None or part is leaf else _at(x, i, axis)
                for x, axis in zip(groups.factors[leaf.path], _layer_axes(leaf), strict=True)
            )
    perturbation = dataclasses.replace(perturbation, leaves=leaves)
    return dataclasses.replace(groups, factors=factors, perturbation=perturbation)


def _leaves(leaf: Leaf) -> list[Leaf]:
    """The leaf of every layer; the leaf itself if it is of no stack."""
    if not leaf.path.startswith(f"{STACK}/"):
        return [leaf]
    rest = leaf.path.removeprefix(f"{STACK}/")
    cut = lambda i: dataclasses.replace(
        leaf, path=f"{STACK}/{i}/{rest}", shape=leaf.shape[1:], roles=leaf.roles[1:]
    )
    return [cut(i) for i in range(leaf.shape[0])]


def _layer_axes(leaf: Leaf) -> tuple[int | None, ...]:
    """The axis of each of a leaf's factors, with its pairs, that counts layers."""
    if leaf.kind == "dense":
        return (0 if leaf.stacked else 1,)
    role = leaf.roles[0]
    if role == "s":
        return 0, 0
    return (1, None) if role == "m" else (None, 1)  # pairs come first: no leading axis is shared


def _at(x: Array, i: int, axis: int) -> Array:
    return lax.index_in_dim(x, i, axis, keepdims=False)
