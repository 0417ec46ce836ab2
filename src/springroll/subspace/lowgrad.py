"""`lowgrad`: a trainer in which the gradient of a weight only ever exists in its subspace."""

from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.deprecation import renamed_keywords
from springroll.errors import InputError, check_takes, expect
from springroll.quant.transformation import whole, wrapped
from springroll.ranges import POSITIVE, check_scalar
from springroll.subspace.basis import Moments
from springroll.subspace.leaves import Layout
from springroll.subspace.per_path import PerPath, per_path
from springroll.subspace.refresh import MERGED
from springroll.subspace.stored_basis import BasisBits, checked_bits
from springroll.subspace.streams import streams_of
from springroll.subspace.trainer import Options, Refresh, Trainer
from springroll.thin.discovery import discover
from springroll.thin.roles import WeightRoles
from springroll.thin.transform import factored
from springroll.trees import PyTree, Select, check_arrays


@renamed_keywords(period="refresh_interval", plan="roles")
def lowgrad(
    loss: Callable[..., Array | tuple[Array, PyTree]],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *example: PyTree,
    rank: PerPath = 128,
    roles: WeightRoles | None = None,
    select: Select = None,
    own_experts: bool = False,
    refresh_interval: PerPath = 200,
    turns: int = 4,
    refresh: Refresh = "power",
    moments: Moments = "rotate",
    widen: float | None = None,
    scale: float | None = None,
    basis_bits: BasisBits = 32,
    accumulate: int = 1,
    in_axes: PyTree = 0,
    has_aux: bool = False,
    seed: int = 0,
) -> Trainer:
    """A trainer of loss(params, *batch) in which no weight's full gradient ever exists.

    A weight W (inputs x outputs) is trained as W + P S. P (inputs x rank) has orthonormal columns
    and belongs to the activation x that W meets, so q, k and v share one, gate and up another. Only
    S is differentiated: dS = Pᵀ G = (x P)ᵀ dy, without G = xᵀ dy. Gradient, optimizer state, what
    is sent between devices and a part of the FLOPs shrink by rank / inputs. `loss` is any JAX
    function; which axes are inputs is read from the program (`sr.discover`).

    Every `refresh_interval` steps a layer gets a new subspace: P S is added to W, P becomes the
    orthonormal basis of G Gᵀ P (one power step, computed in a second backward pass) and S = 0.
    Layers take `turns`. Until then W stands still, so bfloat16 and int8 weights, rounded at random,
    change once per interval.

    >>> import jax, jax.numpy as jnp, optax
    >>> loss = lambda params, x, y: jnp.mean((jnp.tanh(x @ params["w1"]) @ params["w2"] - y) ** 2)
    >>> params = {"w1": jnp.ones((8, 16)) / 8, "w2": jnp.ones((16, 6)) / 16}
    >>> x, y = jnp.ones((4, 8)), jnp.zeros((4, 6))
    >>> trainer = lowgrad(loss, params, optax.adam(1e-2), x, y, rank=2)
    >>> state = trainer.init(params)
    >>> for _ in range(3):
    ...     state, metrics = trainer.update(state, x, y)
    >>> sorted(state.low), state.low["w1"].shape, int(state.schedule.step)
    (['w1', 'w2'], (16, 2), 3)

    Args:
        loss: loss(params, *batch) -> scalar, a mean over the batch; (scalar, aux) with `has_aux`.
        params: arrays or ShapeDtypeStructs; only shapes are read.
        optimizer: any optax transformation, over the parameters' structure with Sᵀ (stacked,
            outputs, rank) in place of the weights in subspaces. Weight decay pulls S to zero, that
            is, the weights to where they were last merged. Clipping sees the gradients of S. One
            that reads weights for more than their decay (Adafactor, LAMB, LARS, adaptive clipping)
            sees (PᵀW)ᵀ + Sᵀ instead, real norms and decay; one that keeps copies of weights
            (Prodigy, schedule-free) is refused.
        *example: a batch, or its shapes; not needed with `roles`.
        rank: columns of P. A quarter of the model's width keeps the quality of full gradients. One
            number; patterns on paths with a number for each, {"*": 128, "*head": 64}, of several
            that match the last; or a function of the path. Above the smaller side of a weight that
            `select` chose it is that side, with a warning. Only weights of one rank and interval
            share a projector.
        roles: what `sr.discover(loss, params, *batch)` returned.
        select: the weights in subspaces: a pattern on their paths ("layers/*_proj") or several, or
            a function path -> bool. By default every weight that is only used
            in products and is larger than `rank` on both sides, so also an untied output head;
            published recipes leave that out.
        own_experts: experts get projectors of their own also where they meet one common activation.
        refresh_interval: steps between two refreshes of a layer; like the rank.
        turns: parts of the interval in which layers are refreshed; 1 refreshes all in one step.
        refresh: "power", or "random": new random bases, without the second backward pass.
        moments: what becomes of the optimizer's averages, see `subspace.rotate_moment`.
        widen: double a layer's interval whenever the new subspace overlaps the old one by at least
            this much (‖P_newᵀ P_old‖²/rank; 0.5 is a high value); None: never.
        scale: factor on the updates of S; None is sqrt(inputs / rank), with which Adam moves W as
            far per entry as with full gradients, so that learning rates carry over.
        basis_bits: per number of P: 32, 16 (bfloat16), or codes of 8 or 4, decoded a layer at a
            time where blocks are recomputed.
        accumulate: equal parts in which a batch is computed; only gradients of S are summed.
        in_axes: what of a batch is cut into those parts, as in `jax.vmap`: 0, or None for what all
            parts share, for each argument or tree of them, (0, 0, None). Numbers without axes are
            always shared. Typed PRNG keys that are shared are folded with the number of the part.
        has_aux: see loss; the mean of aux over the parts is `metrics["aux"]`.
        seed: of initial bases, random bases and rounding; these depend on the step alone.

    Returns:
        A `Trainer`: `init(params)` makes a state, `update(state, *batch)` the next one and metrics,
        `params(state)`, which is `state.params`, the model.

    Raises:
        InputError: a selected vector, nothing to select, an unknown option value, parameters that
            are no arrays, weights of another type than float32, bfloat16 and int8, optimizer state
            of unknown meaning; in training a batch unlike the example.

    Source: gradients in a subspace are from GaLore (arXiv 2403.03507), the power step from PowerSGD
    (1905.13727), turning the moments from LDAdam (2410.16103).
    """
    expect(callable(loss), "loss", loss, "a function, as in lowgrad(loss, params, optimizer)")
    wrapped(optimizer, "lowgrad")
    options = Options(
        *(refresh_interval, turns, refresh, moments, widen, scale, accumulate, seed), in_axes
    )
    _check(options)
    rank = per_path(rank, "rank")
    refresh_interval = per_path(refresh_interval, "refresh_interval")
    basis_bits = checked_bits(basis_bits)
    check_arrays(params)
    expect(bool(jax.tree.leaves(params)), "params", params, "arrays, of which there is none")
    if roles is None:
        if not example:
            raise InputError(
                "lowgrad needs to see the loss at work: give an example batch after the optimizer"
                " (shapes suffice) or roles=sr.discover(loss, params, *batch)."
            )
        check_takes(loss, "loss", params, *example)
        roles = discover(loss, params, *example)
    streams = streams_of(roles, rank, select, own_experts, refresh_interval)
    layout = Layout.of(params, streams, basis_bits)
    _check_types(layout)
    thin_loss = factored(loss, densify_limit=0)

    def run(weights: PyTree, *batch: PyTree) -> tuple[Array, PyTree]:
        out = thin_loss(weights, *batch)
        return out if has_aux else (out, None)

    shape = lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a))
    return Trainer(roles, layout, options, optimizer, run, jax.tree.map(shape, example) or None)


def _check_types(layout: Layout) -> None:
    """Raise InputError for weights that could not be merged."""
    for path, dtype in zip(layout.paths, layout.dtypes, strict=True):
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise InputError(
                f"{path} is {dtype}; lowgrad trains real numbers. Keep its real and imaginary part"
                " as two parameters."
            )
        if path in layout.thin and dtype not in MERGED:
            raise InputError(
                f"{path} is {dtype}; weights in a subspace are float32, bfloat16 or int8. Cast it,"
                " or leave it out with select."
            )


def _check(options: Options) -> None:
    for name, kind in (("refresh", Refresh), ("moments", Moments)):
        given = getattr(options, name)
        if given not in get_args(kind):
            raise InputError(f"{name}={given!r} is unknown; expected one of {get_args(kind)}.")
    for name in ("turns", "accumulate"):
        whole(getattr(options, name), name)
    whole(options.seed, "seed", None)
    if options.scale is not None:
        check_scalar("scale", options.scale)
    if options.widen is not None:
        check_scalar("widen", options.widen, POSITIVE)
