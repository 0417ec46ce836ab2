"""A gradient step as the loop sees it: a pure function of (state, batch), whatever the optimizer.

Each learner is a few pure functions; what it learns with differs, the loop, the run folder and the
memory table do not. A step whose loss or gradient is not finite changes nothing but its count.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.stages import Lowered, Wrapped

from springroll.compat import edge_jit
from springroll.models.protocols import Metrics
from springroll.subspace.gradients import averaged
from springroll.subspace.layerwise import Layerwise, parted
from springroll.subspace.trainer import LowGradState, Trainer
from springroll.train.step_memory import Memory, StepMemory, step_memory
from springroll.trees import Params, PyTree, tree_bytes

State: TypeAlias = PyTree  # of a learner
Loss = Callable[[Params, PyTree], tuple[Array, Metrics]]  # (params, batch) -> loss, metrics
Adjust = Callable[[PyTree, Metrics], PyTree]  # what moves a weight without a gradient
Layout = Callable[[PyTree], PyTree]  # a state, or its shapes -> a sharding of every array


class Learner(NamedTuple):
    """How weights are learnt."""

    init: Callable[[Array], State]
    """The state before the first step, from a key."""
    step: Callable[[State, PyTree], tuple[State, Metrics]]
    """(state, tokens (sequences, T + 1) or packed rows) -> (state, metrics); the state is donated.
    Metrics: `loss` in nats per token, not finite where the step was skipped, and `grad_norm`."""
    memory: Callable[[PyTree], StepMemory]
    """The memory that a step on a batch of this shape and sharding needs. The compiled program is
    stored: the first step runs it."""
    params: Callable[[State], Params]
    """The weights of a state, as the model's functions take them."""
    score: Callable[[State, PyTree], Array] | None = None
    """(state, tokens (n, T + 1) or packed rows) -> mean nats per token, where `params` are never
    together on the device."""
    load: Callable[[Sharding], PyTree] | None = None
    """Reads to the devices of a state what is no part of it, such as frozen weights."""


class Trained(NamedTuple):
    """The state of the learner that any optax transformation makes."""

    params: Params
    optimizer: PyTree
    steps: Array  # () int32, skipped ones included


def optax_learner(
    loss: Loss,
    init: Callable[[Array], Params],
    optimizer: optax.GradientTransformation,
    *,
    narrow: Callable[[Params], Params] = lambda params: params,
    accumulate: int = 1,
    in_axes: PyTree = 0,
    adjust: Adjust = lambda params, _: params,
    layout: Layout | None = None,
) -> Learner:
    """Full gradients, and any optax transformation.

    Args:
        loss: (params, tokens) -> mean nats and metrics.
        init: key -> float32 params, which `optimizer.init` sees.
        narrow: float32 params -> those to train, such as their bfloat16 halves.
        accumulate: micro-batches that a batch is cut into.
        in_axes: which of its leaves are cut, see `averaged`.
        adjust: applied to the new weights with the metrics of the step (balancing of experts).
        layout: of a state that is divided over devices, from its first array on.
    """

    def start(key: Array) -> Trained:
        params = init(key)
        made = Trained(narrow(params), optimizer.init(params), jnp.zeros((), jnp.int32))
        return laid_out(made, layout)

    def step(state: Trained, batch: PyTree) -> tuple[Trained, Metrics]:
        gradient = lambda tokens: jax.value_and_grad(loss, has_aux=True)(state.params, tokens)
        (value, metrics), grads = averaged(gradient, (batch,), accumulate, (in_axes,))
        norm = optax.tree.norm(grads)
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict where users are
            updates, moments = optimizer.update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
        params = adjust(params, metrics)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        params = chosen(good, params, state.params)
        moments = chosen(good, moments, state.optimizer)
        metrics = metrics | {"loss": jnp.where(good, value, jnp.nan), "grad_norm": norm}
        return laid_out(Trained(params, moments, state.steps + 1), layout), metrics

    jitted = jax.jit(step, donate_argnums=0)
    gradients = lambda state: tree_bytes(state.params)
    return Learner(
        init=jax.jit(start),
        step=jitted,
        memory=compiled(start, jitted.lower, weights_of, gradients, layout),
        params=weights_of,
    )


def layerwise_learner(
    trainer: Layerwise,
    init: Callable[[Array], Params],
    *,
    narrow: Callable[[Params], Params] = lambda params: params,
    adjust: Adjust = lambda params, _: params,
    layout: Layout | None = None,
) -> Learner:
    """Full gradients, one layer's at a time; see `springroll.subspace.layerwise`.

    Args as those of `optax_learner`.
    """

    def start(key: Array) -> Trained:
        params = init(key)
        made = Trained(narrow(params), trainer.init(params), jnp.zeros((), jnp.int32))
        return laid_out(made, layout)

    def step(state: Trained, batch: PyTree) -> tuple[Trained, Metrics]:
        params, optimizer, metrics = trainer.step(state.params, state.optimizer, batch)
        after = Trained(adjust(params, metrics), optimizer, state.steps + 1)
        return laid_out(after, layout), metrics

    def gradients(state: Trained) -> int:
        layers, rest = parted(state.params)
        depth = jax.tree.leaves(layers)[0].shape[0]
        return tree_bytes(layers) // depth + tree_bytes(rest)

    jitted = cast(Wrapped, edge_jit(step, donate_argnums=0))
    return Learner(
        init=jax.jit(start),
        step=jitted,
        memory=compiled(start, jitted.lower, weights_of, gradients, layout),
        params=weights_of,
    )


def lowgrad_learner(
    trainer: Trainer,
    init: Callable[[Array], Params],
    adjust: Adjust = lambda params, _: params,
) -> Learner:
    """Gradients in subspaces only; the trainer moves them when it is time."""

    def step(state: LowGradState, batch: PyTree) -> tuple[LowGradState, Metrics]:
        state, metrics = trainer.update(state, batch)
        norm = metrics["grad_norm"]
        loss = jnp.where(jnp.isfinite(norm), metrics["loss"], jnp.nan)
        base = adjust(state.base, metrics["aux"])
        return dataclasses.replace(state, base=base), {"loss": loss, "grad_norm": norm}

    def start(key: Array) -> LowGradState:
        return trainer.init(init(key), donate=True)

    gradients = lambda state: tree_bytes(trainer.layout.trainable(state.base, state.low))
    lower = lambda state, batch: trainer.lower("step", state, batch)
    return Learner(
        init=start,
        step=step,
        memory=compiled(start, lower, trainer.params, gradients),
        params=trainer.params,
    )


def compiled(
    init: Callable[[Array], State],
    lower: Callable[[State, PyTree], Lowered],
    params: Callable[[State], Params],
    gradients: Callable[[State], int],
    layout: Layout | None = None,
    frozen: int = 0,
) -> Callable[[PyTree], Memory]:
    """`Learner.memory` from the compiler's plan of a step.

    Args:
        lower: the program for shapes of state and batch, as `jax.jit(...).lower` gives it.
        gradients: bytes of those that are alive together.
        layout: of the state; by default all of it is on every device of the batch.
        frozen: bytes of weights that are no part of the state.
    """

    def memory(batch: PyTree) -> Memory:
        state = jax.eval_shape(init, jax.random.key(0))
        split = jax.tree.leaves(batch)[0].sharding
        on_batch = isinstance(split, NamedSharding)
        everywhere = NamedSharding(split.mesh, PartitionSpec()) if on_batch else None
        to = layout(state) if layout else jax.tree.map(lambda _: everywhere, state)
        on = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        program = lower(jax.tree.map(on, state, to), batch).compile()
        if layout:
            share = lambda x, s: jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype)
            state = jax.tree.map(share, state, to)
        weights = tree_bytes(jax.eval_shape(params, state))
        return step_memory(
            program,
            weights=weights + frozen,
            state=tree_bytes(state) - weights,
            gradients=gradients(state),
            devices=split.mesh.size if on_batch else 1,
        )

    return memory


def laid_out(state: State, layout: Layout | None) -> State:
    """The state as its layout has it, in a program."""
    return state if layout is None else lax.with_sharding_constraint(state, layout(state))


def weights_of(state: Trained) -> Params:
    return state.params


def chosen(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` where the condition () holds, else `no`: elementwise, so that buffers are reused."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
