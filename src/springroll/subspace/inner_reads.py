"""What an optimizer reads beside its gradients, asked of its traced program.

An optax transformation is two functions of which nothing is known but what they compute. Their
programs tell which results follow from which inputs, whatever the transformation is called; its
name, for messages, is that of the function in which an equation was written.
"""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.extend import core as jex

from springroll import compat
from springroll.errors import InputError
from springroll.subspace.inner_follow import ReadsCoordinates, coordinates, follow
from springroll.trees import PyTree, path_of

Run = Callable[[list[Array]], tuple[list[Array], PyTree]]  # weights -> (their steps first, state)
AROUND = "with_extra_args_support"  # what it wraps has the name
UPDATE = re.compile(r"(\w+)\.<locals>\.update(_fn)?$")  # of optax's "scale_by_adam.<locals>.update"


def reads_weights(run: Run, weights: Sequence[Array]) -> bool:
    """Whether steps or state depend on weights in another way than that these decay.

    Weights decay where the derivative of the step by them is the same whatever they are and for all
    numbers of a matrix, nothing is asked of them that has no slope (a sign, a comparison), and the
    state does not depend on them.

    Args:
        run: weights -> (steps, state), with all else fixed. Steps of these weights come first.
        weights: float arrays; only shapes and types are read.
    """

    def slopes(weights: list[Array]) -> tuple[list[Array], PyTree]:
        ones = [jnp.ones_like(w) for w in weights]
        _, slopes, state = jax.jvp(run, (weights,), (ones,), has_aux=True)
        return slopes, state

    shapes = [_shape(w) for w in weights]
    if any(compat.used_inputs(jax.make_jaxpr(slopes)(shapes))):
        return True
    matrix = lambda shape: range(len(shape))[-2:]
    inputs = [coordinates("weight", i, w.shape, matrix(w.shape)) for i, w in enumerate(shapes)]
    try:
        follow(jax.make_jaxpr(run)(shapes), inputs, len(inputs))
    except ReadsCoordinates:
        return True
    return False


def reader(run: Run, weights: Sequence[Array]) -> str:
    """The name of what `reads_weights`, for messages."""
    closed = jax.make_jaxpr(run)([_shape(w) for w in weights])
    return _named(closed, len(weights), 1, but="add_decayed_weights")


def check_keeps_no_weights(init: Callable[[list[Array]], PyTree], weights: list[Array]) -> None:
    """Raise InputError if `init(weights)` makes a state that depends on what the weights are.

    Weights in a subspace are coordinates in a basis that changes; a copy of them would not.
    """
    closed, state = jax.make_jaxpr(init, return_shape=True)([_shape(w) for w in weights])
    if not any(compat.used_inputs(closed)):
        return
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for number, (path, _) in enumerate(leaves):
        if any(compat.used_inputs(closed, [number == i for i in range(len(leaves))])):
            raise InputError(
                f"{owner_of(state, path)} keeps a copy of the weights in its state"
                f" ({path_of(path)}); weights in a subspace change their coordinates with it, and"
                " the copy would not: use this optimizer without a subspace"
            )


def check_each_by_itself(
    optimizer: optax.GradientTransformation, weights: PyTree, advice: str, **extra: Array
) -> None:
    """Raise InputError if a step of one parameter follows from gradients of others, in that step or
    in the one before.

    Where parameters are updated a bundle at a time, such a transformation (a global norm) would see
    only those of a bundle.

    Args:
        optimizer: Any transformation.
        weights: Of a bundle; only shapes and types are read.
        advice: What to do instead, the end of the message.
        **extra: Arguments of its update.
    """
    shapes = jax.tree.map(_shape, weights)
    leaves, tree = jax.tree.flatten(shapes)
    state = jax.eval_shape(optimizer.init, shapes)
    update = optax.with_extra_args_support(optimizer).update

    def steps(leaves: list[Array], weights: PyTree, state: PyTree) -> list[Array]:
        grads = tree.unflatten(leaves)
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            _, state = update(grads, state, weights, **extra)
            return jax.tree.leaves(update(grads, state, weights, **extra)[0])

    closed = jax.make_jaxpr(steps)(leaves, shapes, state)
    count = len(leaves)
    for number in range(count):
        used = compat.used_inputs(closed, [number == i for i in range(count)])[:count]
        if any(used[:number] + used[number + 1 :]):
            raise InputError(
                f"{_named(closed, count, 2)} looks at all gradients together, and would see one"
                f" bundle of them at a time; {advice}"
            )


def owner_of(state: PyTree, path: tuple) -> str:
    """The innermost class with fields on the way to a leaf, such as "ScaleByAdamState"."""
    node, owner = state, type(state).__name__
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            owner, node = type(node).__name__, getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        elif isinstance(key, jax.tree_util.DictKey):
            node = node[key.key]
        else:
            break
    return owner


def _shape(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _named(closed: jex.ClosedJaxpr, count: int, least: int, but: str = "") -> str:
    """The name of the transformation in which `least` of the first inputs come together first.

    but: a name that is only given where there is no other.
    """
    seen: dict[jex.Var, frozenset[int]] = {
        var: frozenset([i]) for i, var in enumerate(closed.jaxpr.invars[:count])
    }
    found: list[str] = []
    for eqn in closed.jaxpr.eqns:
        inputs = [a for a in eqn.invars if not isinstance(a, compat.Literal)]
        together = frozenset[int]().union(*(seen.get(a, frozenset()) for a in inputs))
        seen |= dict.fromkeys(eqn.outvars, together)
        if len(together) >= least:
            found += _writers(eqn)[:1]
    name = next((name for name in found if name not in (but, AROUND)), but)
    return _public(name) if name in found else "the optimizer"


def written_in(eqn: jex.JaxprEqn) -> str | None:
    """The name of the innermost transformation in which an equation was written."""
    return next((_public(name) for name in _writers(eqn) if name != AROUND), None)


def _writers(eqn: jex.JaxprEqn) -> list[str]:
    """Transformations in which an equation was written, the innermost first."""
    names = (UPDATE.search(name) for name in compat.callers_of(eqn))
    return [name[1] for name in names if name]


def _public(name: str) -> str:
    return f"optax.{name}" if hasattr(optax, name) else name
