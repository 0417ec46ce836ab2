"""Optimizer state in 8 or 4 bits, around any optax transformation.

    tx = quantize_state(optax.adamw(1e-3))              # 2.03 bytes of moments per weight, not 8
    tx = quantize_state(optax.contrib.muon(0.02), bits=4)

The state keeps the inner transformation's own structure (`.mu`, `.nu`, `.count`, hyperparameters);
big moments alone are replaced by `Quantized` nodes. Whoever wants to read or change moments goes
through floats and back:

    floats = dequantize_state(state)                    # plain arrays under the same names
    state = requantize_state(state, rotated(floats))    # in the form of the first argument

Both leave a state without `Quantized` nodes as it is, so the caller need not know which it has.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import GetAttrKey, keystr

from springroll.errors import InputError
from springroll.quant.root_companding import BLOCK, Quantized, dequantize, quantize, requantize
from springroll.quant.sliced_update import update_in_slices
from springroll.quant.transformation import transformation, whole, wrapped
from springroll.trees import KeyPath, PyTree, Select, path_of, selector

# Fields of optimizer states, by what they hold. `v` is missing on purpose: a second moment in some
# optimizers, an average of differences in Adan.
FIRST = ("mu", "trace", "m", "m1", "m2", "momentum", "exp_avg")
SECOND = ("nu", "nu_max", "n", "sum_of_squares", "e_g", "e_x", "exp_avg_sq", "grad_sum_sq")


def quantize_state(
    inner: optax.GradientTransformation,
    bits: int = 8,
    block: int | None = None,
    min_size: int = 4096,
    *,
    stochastic: bool | None = None,
    seed: int = 0,
    first: Sequence[str] = FIRST,
    second: Sequence[str] = SECOND,
    select: Select = None,
) -> optax.GradientTransformationExtraArgs:
    """`inner` with its moments in codes of `bits` bits and one float32 scale per block.

    Costs 1 + 4 / 256 bytes per number with 8 bits, 0.5 + 4 / 128 with 4. Each update decodes a
    moment, lets `inner` change it and codes it again. Which leaves are moments, and of which kind,
    follows from the outermost field of a NamedTuple or dataclass on their path whose name is in
    `first` (signed) or `second` (nonnegative); keys of dictionaries do not count, they name
    parameters. All other state, gradient accumulators and copies of weights among it, stays exact.

    Args:
        inner: any transformation; masked, partitioned, with injected hyperparameters.
        bits: 8 or 4.
        block: numbers per scale; by default 256 with 8 bits, 128 with 4.
        min_size: a leaf with fewer numbers stays as it is.
        stochastic: round codes at random, so that slow averages move (see
            `root_companding.rounded`); by default with 4 bits only. The bits are a function of
            seed, leaf and how often it was rounded: a resumed run repeats them.
        seed: of that randomness.
        first: names of fields with signed moments.
        second: names of fields with moments that are never negative.
        select: the parameters whose moments are coded, by path: a function, a pattern
            ("layers/*") or several; by default all. `lambda path: "embed" not in path` keeps those
            of embeddings exact.

    Raises:
        InputError: bits other than 8 and 4, a block below 2; at init, a state with big float
            leaves but without a moment by any of these names, or a pattern of `select` that
            matches no parameter with a moment.

    Source: block-wise codes of optimizer state are from arXiv 2110.02861, 4 bits from 2309.01507;
    roots instead of tables are ours.
    """
    bits, seed = whole(bits, "bits"), whole(seed, "seed", least=None)
    min_size = whole(min_size, "min_size", least=0)
    if bits not in BLOCK:
        raise InputError(f"quantize_state(bits={bits}): expected 8 or 4")
    if block is not None and whole(block, "block") < 2:
        raise InputError(f"quantize_state(block={block}): expected at least 2 numbers per scale")
    at_random = bits == 4 if stochastic is None else stochastic
    inner = wrapped(inner, "quantize_state")

    def coded(leaf: Array, signed: bool, path: str) -> Quantized:
        own = seed ^ zlib.crc32(path.encode())
        if at_random:
            return quantize(leaf, bits=bits, block=block, signed=signed, stochastic=True, seed=own)
        return dataclasses.replace(_coded(leaf, bits, block, signed), seed=own)

    def init(params: PyTree) -> PyTree:
        state = inner.init(params)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
        big = [path for path, leaf in leaves if _is_big(leaf, min_size)]
        kinds = {keystr(path): _kind(path, first, second) for path in big}
        paths = [below for path, _ in leaves if (below := _parameter(path, first, second))]
        selected = selector(select, paths) if paths else None
        if big and not any(kinds.values()):
            raise InputError(
                f"quantize_state finds no moments in the state of the transformation it wraps: "
                f"{keystr(big[0])} is none of the fields {', '.join([*first, *second])}. "
                f"Name its fields with first=[...] (signed) or second=[...] (nonnegative)"
            )
        return treedef.unflatten(
            [
                coded(leaf, kind == "first", keystr(path))
                if (kind := kinds.get(keystr(path)))
                and (selected is None or selected(_parameter(path, first, second) or ""))
                else leaf
                for path, leaf in leaves
            ]
        )

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: PyTree
    ) -> tuple[PyTree, PyTree]:
        def floats(updates: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
            with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
                return inner.update(updates, state, params, **extra)

        with jax.named_scope("quantize_state"):
            return update_in_slices(floats, updates, state)

    return transformation(init, update)


@functools.partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _coded(leaf: Array, bits: int, block: int | None, signed: bool) -> Quantized:
    """Rounded to nearest: traced once per shape, not per leaf and optimizer."""
    return quantize(leaf, bits=bits, block=block, signed=signed)


def dequantize_state(state: PyTree) -> PyTree:
    """Any tree with its `Quantized` nodes replaced by the float arrays they stand for."""
    with jax.named_scope("dequantize_state"):
        return jax.tree.map(
            lambda x: dequantize(x) if _is_quantized(x) else x, state, is_leaf=_is_quantized
        )


def requantize_state(like: PyTree, floats: PyTree) -> PyTree:
    """`floats` with the leaves coded that are coded in `like`.

    Args:
        like: a state as `quantize_state` keeps it.
        floats: a tree of the same structure with arrays in the place of `Quantized` nodes. Shapes
            must be those of `like`, except that leading axes may be longer or shorter.
    """
    return jax.tree.map(
        lambda q, x: requantize(q, x) if _is_quantized(q) else x,
        like,
        floats,
        is_leaf=_is_quantized,
    )


def _is_quantized(x: PyTree) -> bool:
    return isinstance(x, Quantized)


def _is_big(leaf: PyTree, min_size: int) -> bool:
    array = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return array and leaf.ndim > 0 and leaf.size >= min_size


def _kind(path: KeyPath, first: Sequence[str], second: Sequence[str]) -> str | None:
    at = _field(path, first, second)
    return None if at is None else "first" if path[at].name in first else "second"


def _parameter(path: KeyPath, first: Sequence[str], second: Sequence[str]) -> str | None:
    """The path of the parameter that a leaf is a moment of."""
    at = _field(path, first, second)
    return None if at is None else path_of(path[at + 1 :])


def _field(path: KeyPath, first: Sequence[str], second: Sequence[str]) -> int | None:
    """Where on its path the field of moments is."""
    names = {*first, *second}
    named = (isinstance(key, GetAttrKey) and key.name in names for key in path)
    return next((at for at, found in enumerate(named) if found), None)
