"""A gradient step as the loop sees it: a pure function of (state, batch), whatever the optimizer.

Each learner is a few pure functions; what it learns with differs, the loop, the run folder and the
memory table do not. A step whose loss or gradient is not finite changes nothing but its count.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

Params: TypeAlias = Any
State: TypeAlias = Any
Metrics: TypeAlias = dict[str, Any]
Loss = Callable[[Params, Array], tuple[Array, Metrics]]  # (params, tokens) -> nats, figures
Mend = Callable[[Params, Metrics], Params]  # what moves a weight without a gradient


class Learner(NamedTuple):
    """How weights are learnt."""

    init: Callable[[Array], State]
    """The state before the first step, from a key."""
    step: Any
    """A jitted (state, tokens (micro-batches, sequences, T + 1)) -> (state, figures); the state is
    donated. Figures: `loss` in nats per token, not finite where the step was skipped, and
    `grad_norm`."""
    params: Callable[[State], Params]
    """The weights of a state."""
    refresh: Any = None
    """As `step`, and also moves the subspaces."""
    due: Callable[[State], bool] = lambda _: False
    """Whether `refresh` takes the place of the next `step`."""
    gradient_bytes: int = 0
    """Of the gradients that are alive together."""


class Trained(NamedTuple):
    """The state of the learner that any optax transformation makes."""

    params: Params
    optimizer: Any
    steps: Array  # () int32, skipped ones included


def optax_learner(
    loss: Loss,
    init: Callable[[Array], Params],
    optimizer: optax.GradientTransformation,
    mend: Mend = lambda params, _: params,
) -> Learner:
    """Full gradients, and any optax transformation.

    Args:
        loss: (params, tokens) -> mean nats and figures.
        init: key -> params.
        mend: applied to the new weights with the figures of the step (balancing of experts).
    """

    def start(key: Array) -> Trained:
        params = init(key)
        return Trained(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(state: Trained, batch: Array) -> tuple[Trained, Metrics]:
        (value, figures), grads = accumulated(loss, state.params, batch)
        norm = optax.tree.norm(grads)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = mend(optax.apply_updates(state.params, updates), figures)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        params = chosen(good, params, state.params)
        moments = chosen(good, moments, state.optimizer)
        metrics = figures | {"loss": jnp.where(good, value, jnp.nan), "grad_norm": norm}
        return Trained(params, moments, state.steps + 1), metrics

    shapes = jax.eval_shape(init, jax.random.key(0))
    gradients = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    return Learner(
        init=jax.jit(start),
        step=jax.jit(step, donate_argnums=0),
        params=lambda state: state.params,
        gradient_bytes=gradients,
    )


def accumulated(loss: Loss, params: Params, batch: Array) -> tuple[tuple[Array, Metrics], Params]:
    """Value, figures and gradient of the mean over micro-batches (k, sequences, T + 1)."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if batch.shape[0] == 1:
        return gradient(params, batch[0])
    share = 1.0 / batch.shape[0]

    def add(total: Any, tokens: Array) -> tuple[Any, None]:
        more = gradient(params, tokens)
        return jax.tree.map(lambda t, m: t + (m * share).astype(t.dtype), total, more), None

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
        jax.eval_shape(gradient, params, batch[0]),
    )
    return lax.scan(add, zeros, batch)[0]


def chosen(condition: Array, yes: Any, no: Any) -> Any:
    """`yes` where the condition () holds, else `no`: elementwise, so that buffers are reused."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
