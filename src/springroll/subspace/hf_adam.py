"""Adam as the released code of GaLore, APOLLO and Fira has it (from Hugging Face transformers).

It differs from `optax.adamw` in two ways. Epsilon is added before the bias correction: the step is
lr k_t N with N = m / (sqrt(v) + eps) and k_t = sqrt(1 - b2^t) / (1 - b1^t). And the weight that
decays is the one after the step, W <- (1 - lr wd)(W - lr k_t N).
"""

import math

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from springroll.quant.transformation import transformation
from springroll.ranges import SHARE, check_rate, check_scalar
from springroll.trees import PyTree


def hf_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Adam with weight decay as Hugging Face transformers had it, and so the three papers' code.

    Args:
        learning_rate: a number, or a schedule of the number of updates so far.
        b1, b2: the decay of the first and second moment.
        eps: added to sqrt(v) before the bias correction.
        weight_decay: decoupled, of the weight after the step.

    Returns:
        An optax transformation; with weight decay its update needs the parameters.
    """
    return optax.chain(
        adam_direction(b1, b2, eps), hf_step(learning_rate, b1, b2, weight_decay=weight_decay)
    )


def adam_direction(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformation:
    """N = m / (sqrt(v) + eps), not corrected for bias."""
    check_scalar("b1", b1, SHARE)
    check_scalar("b2", b2, SHARE)
    check_scalar("eps", eps)

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(
        grads: PyTree, state: optax.ScaleByAdamState, params: PyTree = None, **extra: object
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        average = lambda b: lambda old, new: b * old + (1 - b) * new
        mu = jax.tree.map(average(b1), state.mu, grads)
        nu = jax.tree.map(average(b2), state.nu, jax.tree.map(_squared, grads))
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return transformation(init, update)


def _squared(g: Array) -> Array:
    """|g|², in the type of g."""
    if jnp.issubdtype(g.dtype, jnp.complexfloating):
        return (g * jnp.conj(g)).astype(g.dtype)
    return jnp.square(g)


def hf_step(
    learning_rate: optax.ScalarOrSchedule, b1: float, b2: float, *, weight_decay: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """From a direction N to the step: -lr k_t N, then the decay of the weight after it."""
    check_rate("learning_rate", learning_rate)
    check_scalar("weight_decay", weight_decay)
    rate = learning_rate if callable(learning_rate) else lambda count: learning_rate

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        directions: PyTree,
        state: optax.ScaleByScheduleState,
        params: PyTree = None,
        **extra: object,
    ) -> tuple[PyTree, optax.ScaleByScheduleState]:
        with jax.numpy_dtype_promotion("standard"):  # schedules need not be strict
            lr = jnp.asarray(rate(state.count), jnp.float32)
        length = lr * correction(jnp.asarray(state.count) + 1, b1, b2)
        steps = jax.tree.map(lambda x: -length.astype(x.dtype) * x, directions)
        decays = not isinstance(weight_decay, int | float) or weight_decay != 0
        if decays and params is None:
            raise ValueError("weight decay needs the parameters: update(grads, state, params)")
        if decays:
            decay = (lr * weight_decay).astype
            steps = jax.tree.map(
                lambda x, w: x - decay(x.dtype) * (w.astype(x.dtype) + x), steps, params
            )
        return steps, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return transformation(init, update)


def correction(t: Array, b1: ArrayLike, b2: ArrayLike) -> Array:
    """k_t. 1 - b^t as -expm1(t log b): float32 powers lose four digits of it at t = 1."""

    def log(b: ArrayLike) -> Array | float:
        if isinstance(b, int | float):
            return math.log(b) if b > 0 else -math.inf
        return jnp.log(jnp.asarray(b, jnp.float32))  # of optax.inject_hyperparams

    lacking = lambda b: -jnp.expm1(t.astype(jnp.float32) * log(b))
    return jnp.sqrt(lacking(b2)) / lacking(b1)
