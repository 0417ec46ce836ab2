"""Running an optax transformation on the gradient sequence whose torch results are kept."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.reference.gradient_sequence import GAP, STEPS, gradients, weights

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def trajectory(tx, family, keep_after, supply=None):
    """{step: weights} of `tx`; `supply(step, state)` may change the state at each refresh."""
    params = jax.tree.map(jnp.asarray, weights())
    state = jax.jit(tx.init)(params)

    @jax.jit
    def advance(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    kept = {}
    for step in range(STEPS):
        if supply is not None and step % GAP == 0:
            state = supply(step, state)
        params, state = advance(params, state, gradients(family, step))
        if step + 1 in keep_after:
            kept[step + 1] = params
    return kept


def deviation(ours, theirs):
    """The largest distance of two weights, relative to how far the weight has come."""
    return max(
        np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name] - start)
        for name, start in weights().items()
    )


def with_projectors(state, step, kept, key):
    """The state of a `low_rank` frame at a step without refresh, with torch's projectors.

    PyTorch keeps the basis of the rows (out, r) or that of the columns as (r, in).
    """

    def ours(name, projector):
        basis = jnp.asarray(kept[f"{key}/projector/{step}/{name}"])
        if projector.left is not None:
            return projector._replace(left=basis.T)
        return projector._replace(right=basis)

    frame, *rest = state
    matrices = {k: p for k, p in frame.projectors.items() if p is not None}
    supplied = {**frame.projectors, **{k: ours(k, p) for k, p in matrices.items()}}
    return (frame._replace(step=frame.step * 0 + 1, projectors=supplied), *rest)
