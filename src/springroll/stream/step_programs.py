"""What is compiled for a streamed step: once for every structure of layers, whatever their number.

Every program also returns a token, a number that is there when the program is done: the device
copy of a bundle may go when the tokens of its readers are ready, and tokens are never donated.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from springroll import compat
from springroll.errors import InputError, kind_of
from springroll.models.cross_entropy import HeadApart, HeadInputs, head_gradient
from springroll.models.packed import learnt
from springroll.models.protocols import Metrics, Stages, pair_of, read_part
from springroll.stream.replicas import ALONE, Replicas
from springroll.trees import (
    PyTree,
    is_none,
    named_leaves,
    real_cotangents,
    whole_cotangents,
)

Join: TypeAlias = Callable[[PyTree, PyTree], PyTree]


def all_weights(moving: PyTree, still: PyTree) -> PyTree:
    """The `Join` of full gradients: all weights of a bundle are differentiated."""
    return moving


class Reads(NamedTuple):
    """Names of what both ends of a model read of its rest; the head has all that nobody reads."""

    embed: frozenset[str]
    head: frozenset[str]


class StepPrograms:
    """The compiled parts of a step of `model`; micro-batches are averaged over `parts`.

    Args:
        join: (what is differentiated, what is not) -> the weights of a bundle.
        replicas: the devices that a micro-batch is divided over.
    """

    def __init__(
        self,
        model: Stages,
        parts: int = 1,
        join: Join = all_weights,
        replicas: Replicas = ALONE,
    ):
        self._model, self._parts, self._join = model, parts, join
        self._split, self._summed = replicas.split, replicas.summed
        self._embedded: frozenset[str] | None = None  # paths of what `embed` reads, if asked
        self.embed = replicas.compiled(self._embed)
        self.forward = replicas.compiled(self._forward)
        self.score = replicas.compiled(self._score)
        pulled = functools.partial(replicas.compiled, jit=compat.lean_jit)
        self.finish = pulled(self._finish, donate_argnums=5)
        self.finish_apart = pulled(self._finish_apart, donate_argnums=5, static_argnums=6)
        self.head_slice = pulled(self._head_slice, donate_argnums=4, static_argnums=5)
        self.backward = pulled(self._backward, donate_argnums=6)
        self.embed_backward = pulled(self._embed_backward, donate_argnums=4)
        self.narrow = narrow

    def reads(self, rest: PyTree, layers: Sequence[PyTree], tokens: PyTree) -> Reads:
        """What the two ends of the model read, so that the programs can be given that alone.

        Args:
            rest, layers: of a model whose weights are all differentiated: arrays, or their shapes.
            tokens: a micro-batch.
        """
        embed = lambda rest, tokens: self._model.embed(rest, read_part(tokens))
        x, stats = jax.eval_shape(embed, rest, tokens), []
        known: dict[Hashable, tuple[PyTree, PyTree]] = {}
        for layer in layers:
            leaves, tree = jax.tree.flatten((layer, x))
            kind = tree, *((leaf.shape, leaf.dtype) for leaf in leaves)
            if kind not in known:
                known[kind] = jax.eval_shape(self._through, layer, x, jnp.int32(0))
            x, of_layer = known[kind]
            stats.append(of_layer)
        paths = list(named_leaves(rest))
        first = _used(embed, rest, tokens)
        last = _used(lambda *given: self._judged(*given)[0], rest, x, stats, tokens)
        name = lambda path: path.split("/")[0]
        self._embedded = frozenset(p for p, read in zip(paths, first, strict=True) if read)
        head = (p for p, read in zip(paths, last, strict=True) if read or p not in self._embedded)
        return Reads(frozenset(map(name, self._embedded)), frozenset(map(name, head)))

    def _embed(self, moving: PyTree, still: PyTree, tokens: Array) -> tuple[Array, Array]:
        """x of the first layer."""
        x = self._model.embed(self._join(moving, still), read_part(tokens))
        return self._split(x), _token()

    def _forward(
        self, moving: PyTree, still: PyTree, x: Array, index: Array
    ) -> tuple[PyTree, PyTree, Array]:
        """(x after the layer, its statistics, token)."""
        x, stats = self._through(self._join(moving, still), x, index)
        return self._split(x), self._summed(stats), _token()

    def _score(
        self, moving: PyTree, still: PyTree, x: Array, stats: PyTree, tokens: Array
    ) -> tuple[Array, Metrics]:
        """(loss, metrics); `stats` are a list over the layers."""
        return self._summed(self._judged(self._join(moving, still), x, stats, tokens))

    def _finish(
        self, moving: PyTree, still: PyTree, x: Array, stats: PyTree, tokens: Array, grads: PyTree
    ) -> tuple[Array, Metrics, PyTree, Array, PyTree, Array]:
        """(loss, metrics, gradients added to `grads`, that of x, of the statistics, token).

        Gradients are a pair of trees: of the weights that `embed` does not read, which are whole
        after the last part, and of those that it reads. Elsewhere they have None.
        """
        loss, metrics, new, dx, d_stats = self._pulled(moving, still, x, stats, tokens)
        return loss, metrics, self._added(grads, new), dx, d_stats, _token()

    def _finish_apart(
        self,
        moving: PyTree,
        still: PyTree,
        x: Array,
        stats: PyTree,
        tokens: PyTree,
        grads: PyTree,
        name: str,
    ) -> tuple[Array, Metrics, PyTree, Array, PyTree, Array, HeadInputs]:
        """The same without the gradient of the head of this name, and what that is made of."""
        weight, batch = moving[name], learnt(tokens)[0].shape
        zeros = HeadInputs(
            jnp.zeros((*batch, weight.shape[1]), weight.dtype), jnp.zeros(batch), jnp.zeros(batch)
        )
        moving = {**moving, name: HeadApart(weight, zeros)}
        loss, metrics, (own, shared), dx, d_stats = self._pulled(moving, still, x, stats, tokens)
        inputs = own[name].inputs
        others = [{key: tree for key, tree in new.items() if key != name} for new in (own, shared)]
        added = self._added(grads, tuple(others))
        return loss, metrics, added, dx, d_stats, _token(), self._split(inputs)

    def _head_slice(
        self,
        weight: Array,
        tokens: PyTree,
        inputs: HeadInputs,
        index: Array,
        grads: PyTree,
        size: int,
    ) -> tuple[Array, Array]:
        """(slice `index` of the gradient of the head, added to `grads`, token)."""
        new = head_gradient(size, weight, learnt(tokens)[0], inputs, index)
        return self._added(grads, new), _token()

    def _pulled(
        self, moving: PyTree, still: PyTree, x: Array, stats: PyTree, tokens: Array
    ) -> tuple[Array, Metrics, PyTree, Array, PyTree]:
        """(loss, metrics, gradients as of `_finish`, that of x, of the statistics)."""
        leaves, tree = jax.tree.flatten(moving)
        read = self._read(leaves, tree, still, tokens)

        def objective(leaves: list[Array], x: Array, s: PyTree) -> tuple[Array, Metrics]:
            weights = self._join(tree.unflatten(leaves), still)
            return self._judged(weights, x, s, tokens)

        used = _used(lambda leaves: objective(leaves, x, stats)[0], leaves)
        mine = [loss or not embed for loss, embed in zip(used, read, strict=True)]
        of_mine = lambda own, x, s: objective(_placed(own, mine, leaves), x, s)
        own = _chosen(leaves, mine)
        loss, pull, metrics = jax.vjp(of_mine, own, x, stats, has_aux=True)
        own, dx, d_stats = pull(jnp.full_like(loss, 1 / self._parts))
        new = _placed(own, mine, [None] * len(leaves))
        part = lambda which: tree.unflatten(
            [g if embed == which else None for g, embed in zip(new, read, strict=True)]
        )
        loss, metrics, d_stats = self._summed((loss, metrics, real_cotangents(d_stats)))
        dx = self._split(real_cotangents(dx))
        return loss, metrics, (part(False), part(True)), dx, d_stats

    def _backward(
        self,
        moving: PyTree,
        still: PyTree,
        x: Array,
        index: Array,
        dx: Array,
        d_stats: PyTree,
        grads: PyTree,
    ) -> tuple[PyTree, Array, Array]:
        """(gradients added to `grads`, dx of the layer before, token)."""
        block = lambda p, x: self._through(self._join(p, still), x, index)
        (out, stats), pull = jax.vjp(block, moving, x)
        new, dx = pull((whole_cotangents(out, dx), whole_cotangents(stats, d_stats)))
        return self._added(grads, new), self._split(real_cotangents(dx)), _token()

    def _embed_backward(
        self, moving: PyTree, still: PyTree, tokens: Array, dx: Array, grads: PyTree
    ) -> tuple[PyTree, Array]:
        """(gradients of the weights that `embed` reads, added to `grads`, token)."""
        leaves, tree = jax.tree.flatten(moving)
        read = self._read(leaves, tree, still, tokens)

        def embed(own: list[Array]) -> PyTree:
            weights = self._join(tree.unflatten(_placed(own, read, leaves)), still)
            return self._model.embed(weights, read_part(tokens))

        x, pull = jax.vjp(embed, _chosen(leaves, read))
        before = _chosen(jax.tree.leaves(grads, is_leaf=is_none), read)
        pairs = zip(before, pull(whole_cotangents(x, dx))[0], strict=True)
        added = [self._added(None if g is None else [g], [new])[0] for g, new in pairs]
        return tree.unflatten(_placed(added, read, [None] * len(leaves))), _token()

    def _through(self, layer: PyTree, x: PyTree, index: Array) -> tuple[PyTree, PyTree]:
        """(x after the layer, its statistics)."""
        return pair_of(self._model.block(layer, x, index), "block", "(x, statistics of the layer)")

    def _judged(
        self, rest: PyTree, x: PyTree, stats: list[PyTree], tokens: PyTree
    ) -> tuple[Array, Metrics]:
        """(loss, metrics); `stats` are a list over the layers."""
        result = self._model.finish(rest, x, stacked(stats), tokens)
        loss, metrics = pair_of(result, "finish", "(loss, metrics)")
        if jnp.shape(loss) or not isinstance(metrics, dict):
            raise InputError(
                f"finish returns a loss of the shape {jnp.shape(loss)} and {kind_of(metrics)}; "
                "expected a number and a dictionary of metrics"
            )
        return loss, metrics

    def _read(self, leaves: list[Array], tree: Any, still: PyTree, tokens: Array) -> list[bool]:
        """Which of the weights `embed` reads."""
        if self._embedded is not None:
            return [path in self._embedded for path in named_leaves(tree.unflatten(leaves))]
        part = read_part(tokens)
        embed = lambda leaves: self._model.embed(self._join(tree.unflatten(leaves), still), part)
        return _used(embed, leaves)

    def _added(self, grads: PyTree, new: PyTree) -> PyTree:
        """Several micro-batches are summed in float32."""
        new = self._summed(new)
        if grads is None:
            wide = lambda g: g.astype(jnp.float32) if self._parts > 1 else g
            return jax.tree.map(wide, new)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, new)


def _used(fn: Callable[..., PyTree], weights: PyTree, *others: PyTree) -> list[bool]:
    """Which of the arrays of its first argument the result of a function depends on."""
    used = compat.used_inputs(jax.make_jaxpr(fn)(weights, *others))
    return used[: len(jax.tree.leaves(weights))]


def _chosen(leaves: list[PyTree], mine: list[bool]) -> list[PyTree]:
    return [leaf for leaf, own in zip(leaves, mine, strict=True) if own]


def _placed(own: list[Array], mine: list[bool], others: list[PyTree]) -> list[PyTree]:
    """`own` in the places that are `mine`, and `others` elsewhere."""
    given = iter(own)
    return [next(given) if is_own else x for is_own, x in zip(mine, others, strict=True)]


def stacked(stats: PyTree) -> PyTree:
    """Statistics of the layers that have any, with a leading axis of layers."""
    present = [one for one in stats if jax.tree.leaves(one)] or stats[:1]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *present)


@jax.jit
def narrow(grads: PyTree, weights: PyTree) -> PyTree:
    """Gradients in the types of the weights: what crosses the link. None stays."""
    typed = lambda g, w: None if g is None else g.astype(w.dtype)
    return jax.tree.map(typed, grads, weights, is_leaf=is_none)


def _token() -> Array:
    return jnp.zeros((), jnp.int32)
