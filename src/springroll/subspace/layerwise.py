"""Training in which one layer's gradient is alive at a time.

The forward pass keeps the input of every block. The backward pass walks the blocks from the last to
the first: it computes a block again, takes the gradient of that layer, updates the layer and its
optimizer state in place, and drops the gradient. Gradients then take the memory of one layer, with
those of embedding and head; with an optimizer of little state, such as `apollo_mini`, weights are
nearly all that is left. Memory of LLaMA-7B in float32 on 256 tokens:
`python -m bench.layerwise_memory`.

What it cannot do: the norm of the whole gradient is known only at the end, when most layers have
been updated. Clipping is therefore by layer, or by the norm of the step before (see `layerwise`).
Gradients cannot be accumulated over micro-batches either; they are never there together.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from springroll.errors import InputError
from springroll.models.protocols import Metrics, Stages, check_arguments, checked_stages, read_part
from springroll.quant.transformation import wrapped
from springroll.ranges import POSITIVE, check_number
from springroll.subspace.inner_reads import check_each_by_itself
from springroll.trees import Params, PyTree, real_cotangents, squared_norm, whole_cotangents


class LayerwiseState(NamedTuple):
    """layers: optimizer states of the layers, stacked; rest: of all else; norm: () float32, of the
    last step's gradient, 0 before the first."""

    layers: PyTree
    rest: PyTree
    norm: Array


class Layerwise(NamedTuple):
    """init: params -> state. step: (params, state, tokens (batch, time + 1)) -> (params, state,
    metrics), pure: jit it with `donate_argnums=(0, 1)`, else weights exist twice (on a CPU with
    jax below 0.11 by `edge_jit`, else some optimizers copy whole stacks)."""

    init: Callable[[Params], LayerwiseState]
    step: Callable[[Params, LayerwiseState, Array], tuple[Params, LayerwiseState, Metrics]]


def layerwise(
    model: Stages,
    optimizer: optax.GradientTransformation,
    rest: optax.GradientTransformation | None = None,
    *,
    clip: float | None = None,
    clip_by: Literal["layer", "previous"] = "layer",
) -> Layerwise:
    """A training step that updates each layer as soon as its gradient is known.

    The result is that of one gradient of the whole loss and `optimizer` applied to every layer by
    itself. A transformation that looks at all gradients together (a global norm) is refused: it
    would see one layer's at a time.

        trainer = layerwise(model, sr.apollo_mini(1e-2), optax.adam(1e-3))
        state = trainer.init(params)
        step = jax.jit(trainer.step, donate_argnums=(0, 1))
        params, state, metrics = step(params, state, tokens)

    Args:
        model: a model in parts, such as a `Decoder`, whose layers are in "layers".
        optimizer: for the layers. It sees {"layers": one layer}, so that paths are those of the
            whole tree, and the extra argument `layer`, the index (random projections differ by it).
        rest: for all other parameters (embedding, last norm, head); by default `optimizer`.
        clip: largest norm of a gradient.
        clip_by: "layer": each layer's own norm, and that of the rest, is brought down to `clip`.
            "previous": all gradients of a step are multiplied by min(1, clip / norm of the step
            before): the scale that a global clip had a step ago.

    Returns:
        `init` and `step`, pure functions; see `Layerwise`.

    Metrics: those of `finish`, `loss`, and `grad_norm`, of the whole gradient before clipping. A
    loss that is not finite changes nothing; a gradient that becomes so on its way down changes
    nothing from there on. `loss` is NaN then, and the norm of the state stays as it was.

    Raises:
        InputError: a clip that is not positive, another `clip_by`; in `init`, an optimizer that
            looks at all gradients together.
    """
    if clip is not None:
        check_number("clip", clip, float, POSITIVE)
    if clip_by not in ("layer", "previous"):
        raise InputError(f"clip_by is {clip_by!r}; expected 'layer' or 'previous'")
    for_layer = wrapped(optimizer, "layerwise")
    for_rest = wrapped(optimizer if rest is None else rest, "layerwise")

    def init(params: Params) -> LayerwiseState:
        checked_stages(model, params)
        check_arguments(model)
        layers, others = parted(params)
        shape = lambda w: jax.ShapeDtypeStruct(w.shape[1:], w.dtype)
        advice = "leave it out, and clip by clip=... of sr.layerwise"
        layer = {"layers": jax.tree.map(shape, layers)}
        check_each_by_itself(for_layer, layer, advice, layer=jnp.zeros((), jnp.int32))
        check_each_by_itself(for_rest, others, advice)
        states = jax.vmap(lambda layer: for_layer.init({"layers": layer}))(layers)
        return LayerwiseState(states, for_rest.init(others), jnp.zeros((), jnp.float32))

    def factor(norm: Array, state: LayerwiseState) -> Array:
        if clip is None:
            return jnp.ones((), jnp.float32)
        reference = norm if clip_by == "layer" else state.norm
        return jnp.minimum(1.0, clip / jnp.maximum(reference, 1e-30))

    def step(
        params: Params, state: LayerwiseState, tokens: Array
    ) -> tuple[Params, LayerwiseState, Metrics]:
        layers, others = parted(params)
        inputs = read_part(tokens)
        depth = jax.tree.leaves(layers)[0].shape[0]
        x0, pull_embed = jax.vjp(lambda p: model.embed(p, inputs), others)
        with jax.named_scope("forward"):
            x, (entered, stats) = lax.scan(
                lambda x, w: _entered(model, x, *w),
                x0,
                (layers, jnp.arange(depth, dtype=jnp.int32)),
            )
        loss, pull, metrics = jax.vjp(
            lambda p, x, s: model.finish(p, x, s, tokens), others, x, stats, has_aux=True
        )
        d_others, dx, d_stats = pull(jnp.ones_like(loss))
        dx = real_cotangents(dx)

        def backward(k: Array, carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
            layers, states, dx, squares, good = carry
            at = (depth - 1 - k).astype(jnp.int32)
            weights, memory = _read((layers, states), at)
            (x, _), pull = jax.vjp(lambda w, x: model.block(w, x, at), weights, _at(entered, at))
            grads, dx = pull((whole_cotangents(x, dx), _at(d_stats, at)))
            dx = real_cotangents(dx)
            square = squared_norm(grads)
            good = good & jnp.isfinite(square)
            grads = _scaled(grads, factor(jnp.sqrt(square), state))
            new, memory = _updated(for_layer, grads, memory, weights, good, at)
            layers = _write(layers, new, at)
            return layers, _write(states, memory, at), dx, squares + square, good

        with jax.named_scope("backward"):
            start = (layers, state.layers, dx, jnp.zeros((), jnp.float32), jnp.isfinite(loss))
            layers, states, dx, squares, good = lax.fori_loop(0, depth, backward, start)
        grads = jax.tree.map(jnp.add, d_others, pull_embed(whole_cotangents(x0, dx))[0])
        square = squared_norm(grads)
        good = good & jnp.isfinite(square)
        grads = _scaled(grads, factor(jnp.sqrt(square), state))
        others, others_state = _updated_rest(for_rest, grads, state.rest, others, good)
        norm = jnp.sqrt(squares + square)
        metrics = {**metrics, "loss": jnp.where(good, loss, jnp.nan), "grad_norm": norm}
        after = LayerwiseState(states, others_state, jnp.where(good, norm, state.norm))
        return {**others, "layers": layers}, after, metrics

    return Layerwise(init, step)


def parted(params: Params) -> tuple[Params, Params]:
    """The stacked layers, and all else."""
    return params["layers"], {name: p for name, p in params.items() if name != "layers"}


def _entered(
    model: Stages, x: PyTree, weights: Params, index: Array
) -> tuple[PyTree, tuple[PyTree, PyTree]]:
    y, stats = model.block(weights, x, index)
    return y, (x, stats)


def _updated(
    optimizer: optax.GradientTransformationExtraArgs,
    grads: Params,
    state: PyTree,
    weights: Params,
    good: Array,
    layer: Array,
) -> tuple[Params, PyTree]:
    new, state = _updated_rest(
        optimizer, {"layers": grads}, state, {"layers": weights}, good, layer=layer
    )
    return new["layers"], state


def _updated_rest(
    optimizer: optax.GradientTransformationExtraArgs,
    grads: Params,
    state: PyTree,
    params: Params,
    good: Array,
    **extra: Array,
) -> tuple[Params, PyTree]:
    """Parameters and state after the update; as they were unless `good`."""
    with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
        updates, new_state = optimizer.update(grads, state, params, **extra)
        new = optax.apply_updates(params, updates)
    keep = lambda a, b: jnp.where(good, a, b)
    return jax.tree.map(keep, new, params), jax.tree.map(keep, new_state, state)


def _at(tree: PyTree, i: Array) -> PyTree:
    def slice(a: Array | np.ndarray) -> Array | np.ndarray:
        if a.dtype == jax.dtypes.float0:  # no cotangent: a statistic that is an integer
            return np.zeros(a.shape[1:], a.dtype)
        return lax.dynamic_index_in_dim(a, i, keepdims=False)

    return jax.tree.map(slice, tree)


def _read(tree: PyTree, i: Array) -> PyTree:
    """A slice that is taken before anything is written: a later reader would make XLA copy the
    whole stack."""
    return lax.optimization_barrier(_at(tree, i))


def _write(tree: PyTree, part: PyTree, i: Array) -> PyTree:
    return jax.tree.map(lambda a, b: lax.dynamic_update_index_in_dim(a, b, i, 0), tree, part)


def _scaled(grads: PyTree, factor: Array) -> PyTree:
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
