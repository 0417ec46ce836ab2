"""How many rows a batch has, and how many are taken at a time."""

import jax
import jax.numpy as jnp

from springroll.errors import InputError
from springroll.trees import PyTree


def rows_together(count: int, most: int, devices: int) -> int:
    """How many of `count` rows are taken at a time, at most `most`: a divisor, and if there is one
    a number that the devices share evenly."""
    fit = [n for n in range(min(most, count), 0, -1) if count % n == 0]
    return next((n for n in fit if n % devices == 0), fit[0])


def rows_of(inputs: PyTree) -> int:
    """The length of the first axis, which all arrays of a batch share.

    Raises:
        InputError: they do not share it, or there is none.
    """
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)}
    counts = {shape[:1] for shape in shapes}
    if len(counts) != 1 or counts <= {(), (0,)}:
        raise InputError(
            f"the arrays of a batch have the shapes {sorted(shapes)}; expected one first axis, the "
            "rows of the batch"
        )
    return counts.pop()[0]
