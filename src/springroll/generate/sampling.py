"""The next token of every row, and its logarithmic probability."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.ranges import COUNT, NOT_NEGATIVE, PORTION, UNIT_INTERVAL, check_number

BLOCK = 128  # logits


class Sampling(NamedTuple):
    """How the next token is chosen from logits; None: no bound. Checked by `check`.

    Bounds take effect in this order: of the probabilities at the temperature the `top_k` largest
    are kept; of those the largest that make up a share `top_p` of their sum; of those the ones of
    at least `min_p` times the largest. A token that is as likely as one that is kept is kept too.
    """

    temperature: float = 0.0  # 0 takes the likeliest token
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def check(self) -> "Sampling":
        """Itself; InputError where a number is out of its range."""
        check_number("temperature", self.temperature, float, NOT_NEGATIVE)
        for name, kind, range in (
            ("top_k", int, COUNT),
            ("top_p", float, PORTION),
            ("min_p", float, UNIT_INTERVAL),
        ):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, kind, range)
        return self

    def draw(self, seed: int) -> "Draw":
        """The same on the device."""
        wide = lambda value: None if value is None else jnp.float32(value)
        return Draw(jax.random.key(seed), *map(wide, self))  # type: ignore[arg-type]


class Draw(NamedTuple):
    """How tokens are chosen; all rows alike. See `Sampling`."""

    key: Array  # () of the seed
    temperature: Array  # () float32, not looked at when the likeliest token is taken
    top_k: Array | None = None  # () float32
    top_p: Array | None = None  # () float32
    min_p: Array | None = None  # () float32


def row_keys(key: Array, member: Array, prompt: Array, count: Array) -> Array:
    """A key per row from (seed, member, prompt, position) and nothing else: (R,)."""
    fold = lambda member, prompt, count: jax.random.fold_in(
        jax.random.fold_in(jax.random.fold_in(key, member), prompt), count
    )
    return jax.vmap(fold)(member, prompt, count)


def choose(
    draw: Draw, logits: Array, member: Array, prompt: Array, count: Array, sampled: bool
) -> Array:
    """One token per row, (R,) int32, from logits (R, V) float32.

    With `sampled` drawn from softmax(logits / temperature) of the tokens that are kept, else the
    likeliest (the first of equal ones). `count` (R,) is how many tokens the row has been given
    before.
    """
    if not sampled:
        return likeliest(logits)
    keys = row_keys(draw.key, member, prompt, count)
    scaled = bounded(draw, logits / draw.temperature)
    return jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)


def likeliest(logits: Array) -> Array:
    """The first of the largest numbers of each row, as `jnp.argmax` finds it: (R, V) to (R,) int32.

    Block by block: the largest number of each is a reduction that processors do in registers, which
    they do not when the place is carried along (0.7 against 9 ms for 64 rows of 49,152).
    """
    rows, vocabulary = logits.shape
    padded = jnp.pad(logits, ((0, 0), (0, -vocabulary % BLOCK)), constant_values=-jnp.inf)
    blocks = padded.reshape(rows, -1, BLOCK)
    best = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1).astype(jnp.int32)
    within = jnp.take_along_axis(blocks, best[:, None, None], axis=1)[:, 0]
    return best * BLOCK + jnp.argmax(within, axis=-1).astype(jnp.int32)


def bounded(draw: Draw, scaled: Array) -> Array:
    """Logits (R, V), divided by the temperature, with -inf in the place of tokens not kept."""
    if draw.top_k is not None:
        scaled = _largest(scaled, jnp.ones_like(scaled), draw.top_k)
    if draw.top_p is not None:
        scaled = _largest(scaled, jax.nn.softmax(scaled, axis=-1), draw.top_p)
    if draw.min_p is not None:
        least = jnp.max(scaled, axis=-1, keepdims=True) + jnp.log(draw.min_p)
        scaled = jnp.where(scaled >= least, scaled, -jnp.inf)
    return scaled


def _largest(scaled: Array, weight: Array, target: Array) -> Array:
    """`scaled` (R, V) where it is among the largest whose weights reach the target, else -inf.

    Found without sorting: bit by bit the largest threshold such that the weights of what is not
    below it reach the target. 32 passes over the logits, at any size of vocabulary.
    """
    bits = lax.bitcast_convert_type(jnp.where(scaled == 0, 0.0, scaled), jnp.uint32)
    top = np.uint32(1 << 31)
    ordered = jnp.where(bits >= top, ~bits, bits | top)  # unsigned integers in the order of floats

    def bit(i: Array, least: Array) -> Array:
        higher = least | (top >> i.astype(jnp.uint32))
        reached = jnp.sum(jnp.where(ordered >= higher, weight, 0.0), axis=-1, keepdims=True)
        return jnp.where(reached >= target, higher, least)

    least = lax.fori_loop(0, 32, bit, jnp.zeros((len(scaled), 1), jnp.uint32))
    return jnp.where(ordered >= least, scaled, -jnp.inf)


def log_probability(draw: Draw, logits: Array, tokens: Array, sampled: bool) -> Array:
    """log of the probability that `tokens` (R,) had in softmax(logits / temperature): (R,) float32.

    That is of all tokens, whichever are kept. Where the likeliest token is taken, of
    softmax(logits).
    """
    scaled = logits / draw.temperature if sampled else logits
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(scaled, axis=-1)
