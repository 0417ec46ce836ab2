"""A gradient step as the loop sees it: a pure function of (state, batch), whatever the optimizer.

Each learner is a few pure functions; what it learns with differs, the loop, the run folder and the
memory table do not. A step whose loss or gradient is not finite changes nothing but its count.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from springroll.compat import edge_jit
from springroll.subspace.gradients import averaged
from springroll.subspace.layerwise import Layerwise, parted
from springroll.subspace.lowgrad import Trainer
from springroll.train.step_memory import Memory, step_memory
from springroll.trees import PyTree, tree_bytes

Params: TypeAlias = Any
State: TypeAlias = Any
Metrics: TypeAlias = dict[str, Any]
Loss = Callable[[Params, Any], tuple[Array, Metrics]]  # (params, batch) -> loss, figures
Mend = Callable[[Params, Metrics], Params]  # what moves a weight without a gradient


class Learner(NamedTuple):
    """How weights are learnt."""

    init: Callable[[Array], State]
    """The state before the first step, from a key."""
    step: Callable[[State, PyTree], tuple[State, Metrics]]
    """(state, tokens (sequences, T + 1)) -> (state, figures); the state is donated.
    Figures: `loss` in nats per token, not finite where the step was skipped, and `grad_norm`."""
    memory: Callable[[Any], Any]
    """What a step on a batch of this shape and sharding needs: something with a `peak` in bytes on
    the device and a `table()`. The program is kept: the first step runs it."""
    params: Callable[[State], Params]
    """The weights of a state."""
    score: Callable[[State, Any], Array] | None = None
    """(state, tokens (n, T + 1)) -> mean nats per token, where `params` are never together on the
    device."""


class Trained(NamedTuple):
    """The state of the learner that any optax transformation makes."""

    params: Params
    optimizer: Any
    steps: Array  # () int32, skipped ones included


def optax_learner(
    loss: Loss,
    init: Callable[[Array], Params],
    optimizer: optax.GradientTransformation,
    *,
    narrow: Callable[[Params], Params] = lambda params: params,
    accumulate: int = 1,
    mend: Mend = lambda params, _: params,
) -> Learner:
    """Full gradients, and any optax transformation.

    Args:
        loss: (params, tokens) -> mean nats and figures.
        init: key -> float32 params, which `optimizer.init` sees.
        narrow: float32 params -> those to train, such as their bfloat16 halves.
        accumulate: micro-batches that a batch is cut into.
        mend: applied to the new weights with the figures of the step (balancing of experts).
    """

    def start(key: Array) -> Trained:
        params = init(key)
        return Trained(narrow(params), optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(state: Trained, batch: Array) -> tuple[Trained, Metrics]:
        gradient = lambda tokens: jax.value_and_grad(loss, has_aux=True)(state.params, tokens)
        (value, figures), grads = averaged(gradient, (batch,), accumulate)
        norm = optax.tree.norm(grads)
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict where users are
            updates, moments = optimizer.update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
        params = mend(params, figures)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        params = chosen(good, params, state.params)
        moments = chosen(good, moments, state.optimizer)
        metrics = figures | {"loss": jnp.where(good, value, jnp.nan), "grad_norm": norm}
        return Trained(params, moments, state.steps + 1), metrics

    jitted = jax.jit(step, donate_argnums=0)
    return Learner(
        init=jax.jit(start),
        step=jitted,
        memory=compiled(start, jitted.lower, weights_of, lambda state: tree_bytes(state.params)),
        params=weights_of,
    )


def layerwise_learner(
    trainer: Layerwise,
    init: Callable[[Array], Params],
    *,
    narrow: Callable[[Params], Params] = lambda params: params,
    mend: Mend = lambda params, _: params,
) -> Learner:
    """Full gradients, one layer's at a time; see `springroll.subspace.layerwise`.

    Args as those of `optax_learner`.
    """

    def start(key: Array) -> Trained:
        params = init(key)
        return Trained(narrow(params), trainer.init(params), jnp.zeros((), jnp.int32))

    def step(state: Trained, batch: Array) -> tuple[Trained, Metrics]:
        params, optimizer, metrics = trainer.step(state.params, state.optimizer, batch)
        return Trained(mend(params, metrics), optimizer, state.steps + 1), metrics

    def gradients(state: Trained) -> int:
        layers, rest = parted(state.params)
        depth = jax.tree.leaves(layers)[0].shape[0]
        return tree_bytes(layers) // depth + tree_bytes(rest)

    jitted: Any = edge_jit(step, donate_argnums=0)
    return Learner(
        init=jax.jit(start),
        step=jitted,
        memory=compiled(start, jitted.lower, weights_of, gradients),
        params=weights_of,
    )


def lowgrad_learner(
    trainer: Trainer,
    init: Callable[[Array], Params],
    mend: Mend = lambda params, _: params,
) -> Learner:
    """Gradients in subspaces only; the trainer moves them when it is time."""

    def step(state: Any, batch: Array) -> tuple[Any, Metrics]:
        state, found = trainer.update(state, batch)
        loss = jnp.where(jnp.isfinite(found["grad_norm"]), found["loss"], jnp.nan)
        params = mend(state.params, found["aux"])
        return state._replace(params=params), {"loss": loss, "grad_norm": found["grad_norm"]}

    def start(key: Array) -> Any:
        return trainer.init(init(key))

    gradients = lambda state: tree_bytes(trainer.layout.trainable(state.params, state.low))
    lower = lambda state, batch: trainer.lower("step", state, batch)
    return Learner(
        init=start,
        step=step,
        memory=compiled(start, lower, trainer.params, gradients),
        params=trainer.params,
    )


def compiled(
    init: Callable[[Array], State],
    lower: Callable[[State, Any], Any],
    params: Callable[[State], Params],
    gradients: Callable[[State], int],
) -> Callable[[Any], Memory]:
    """`Learner.memory` from the compiler's plan of a step.

    Args:
        lower: the program for shapes of state and batch, as `jax.jit(...).lower` gives it.
        gradients: bytes of those that are alive together.
    """

    def memory(batch: Any) -> Memory:
        state = jax.eval_shape(init, jax.random.key(0))
        weights = tree_bytes(jax.eval_shape(params, state))
        there = NamedSharding(batch.sharding.mesh, PartitionSpec()) if batch.sharding else None
        on = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there)
        return step_memory(
            lower(jax.tree.map(on, state), batch).compile(),
            weights=weights,
            state=tree_bytes(state) - weights,
            gradients=gradients(state),
        )

    return memory


def weights_of(state: Trained) -> Params:
    return state.params


def chosen(condition: Array, yes: Any, no: Any) -> Any:
    """`yes` where the condition () holds, else `no`: elementwise, so that buffers are reused."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
