"""The three compiled programs of generation: take rows in, write on, and move rows together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.compat import edge_jit
from springroll.evolve.perturbation import Factors, Perturbation
from springroll.generate import unstacked
from springroll.generate.rows import Thin, bound, read, step
from springroll.generate.sampling import Draw, choose, log_probability
from springroll.models.protocols import Generative, Memory


@dataclass(frozen=True)
class Program:
    """What programs are compiled for, beside shapes."""

    model: Generative
    perturbation: Perturbation | None
    end: tuple[int, ...]
    max_tokens: int
    length: int  # of the memory, in tokens
    sampled: bool
    log_probabilities: bool


class Rows(NamedTuple):
    """All that is known of every row beside its memory; each (R,)."""

    token: Array  # int32, the last one written and not yet read
    seen: Array  # int32, tokens read
    made: Array  # int32, tokens written
    live: Array  # bool
    member: Array  # int32
    prompt: Array  # int32
    sign: Array  # float32


class Prompts(NamedTuple):
    """Rows to be taken in: U groups of h. A row number past the last row is of a row to drop."""

    row: Array | np.ndarray  # (U, h) int32
    tokens: Array | np.ndarray  # (U, h, T) int32, padded on the left
    length: Array | np.ndarray  # (U, h) int32
    member: Array | np.ndarray  # (U, h) int32
    prompt: Array | np.ndarray  # (U, h) int32
    sign: Array | np.ndarray  # (U, h) float32
    pair: Array | np.ndarray  # (U,) int32


class Written(NamedTuple):
    """What a segment wrote: tokens (R, n) int32, log-probabilities (R, n) or (R, 0), steps ()."""

    tokens: Array
    log_probabilities: Array
    steps: Array


def idle(rows: int) -> Rows:
    """Rows that hold nothing."""
    zero, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    return Rows(zero, zero, zero, no, zero, zero, jnp.zeros(rows, jnp.float32))


def apart(model: Generative) -> bool:
    """Whether steps of the model take a list of layers in the place of their stack."""
    return getattr(model, "apart", False)


@functools.partial(jax.jit, static_argnums=0)
def weights(program: Program, params: Any) -> Any:
    """The parameters as steps take them."""
    return unstacked.weights(params) if apart(program.model) else params


@functools.partial(jax.jit, static_argnums=(0, 3))
def bind(program: Program, drawn: Factors, pairs: Array, dtype: Any) -> Factors:
    """The factors of the pairs (G,) that groups hold, as steps take them."""
    perturbation = program.perturbation
    assert perturbation is not None
    factors = bound(perturbation, drawn, pairs, dtype)
    return unstacked.factors(perturbation, factors) if apart(program.model) else factors


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def memory(program: Program, rows: int, dtype: Any) -> Memory:
    """Of rows that have seen nothing; every array its own, to be written in place."""
    return program.model.memory(rows, program.length, dtype)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="memory")
def take_in(
    program: Program,
    dtype: Any,
    params: Any,
    drawn: Factors | None,
    sigma: Array,
    draw: Draw,
    clock: Array,
    prompts: Any,
    memory: Memory,
    rows: Rows,
) -> tuple[Memory, Rows, Array, Array]:
    """Read prompts into rows and write the first token of each.

    Returns memory, rows, and of every prompt, in order, its token and log-probability.
    """
    model, perturbation = program.model, program.perturbation
    thin = None
    if perturbation is not None:
        assert drawn is not None
        thin = Thin(bound(perturbation, drawn, prompts.pair, dtype), sigma)
    logits, found = read(
        model, perturbation, params, thin, prompts.sign, prompts.tokens, prompts.length
    )
    at = prompts.row.reshape(-1)
    memory = model.admit(memory, found, at, clock)
    member, prompt, seen, sign = (
        x.reshape(-1) for x in (prompts.member, prompts.prompt, prompts.length, prompts.sign)
    )
    made = jnp.zeros(at.shape, jnp.int32)
    token, log_p = _written(program, draw, logits, member, prompt, made)
    live = _goes_on(program, token, made + 1)
    new = Rows(token, seen, made + 1, live, member, prompt, sign)
    put = lambda old, new: old.at[at].set(new, mode="drop", unique_indices=True)
    return memory, jax.tree.map(put, rows, new), token, log_p


@functools.partial(edge_jit, static_argnums=(0, 1, 2), donate_argnames="memory")
def write_on(
    program: Program,
    groups: int,
    most: int,
    params: Any,
    thin: Thin | None,
    draw: Draw,
    least: Array,
    clock: Array,
    memory: Memory,
    rows: Rows,
) -> tuple[Memory, Rows, Array, Written]:
    """Steps of all rows, at most `most`, until no more than `least` () rows are live.

    params are `weights`, factors those of `bind`.

    Returns memory, rows, clock, and what was written.
    """
    count = rows.token.shape[0]
    perturbation = program.perturbation
    if perturbation is not None and apart(program.model):
        perturbation = unstacked.perturbation(perturbation)
    start = Written(
        jnp.zeros((count, most), jnp.int32),
        jnp.zeros((count, most if program.log_probabilities else 0), jnp.float32),
        jnp.int32(0),
    )

    def more(carry: Any) -> Array:
        _, rows, _, written = carry
        live = jnp.sum(rows.live, dtype=jnp.int32)
        return (written.steps < most) & (live > least)

    def body(carry: Any) -> Any:
        memory, rows, clock, written = carry
        sign = rows.sign.reshape(groups, -1)
        logits, found = step(
            program.model,
            perturbation,
            params,
            thin,
            sign,
            rows.token,
            memory,
            rows.seen,
            clock,
        )
        token, log_p = _written(program, draw, logits, rows.member, rows.prompt, rows.made)
        # Tokens are never negative, which XLA does not know: it must not write to the memory before
        # all of it has been read, or it would copy it.
        memory = program.model.keep(memory, found, clock + (token[0] >> 31))
        live = rows.live.astype(jnp.int32)
        made = rows.made + live
        rows = rows._replace(
            token=token,
            seen=rows.seen + live,
            made=made,
            live=rows.live & _goes_on(program, token, made),
        )
        put = lambda into, column: lax.dynamic_update_slice_in_dim(
            into, column[:, None], written.steps, 1
        )
        return (
            memory,
            rows,
            (clock + 1) % program.length,
            Written(
                put(written.tokens, token),
                put(written.log_probabilities, log_p)
                if program.log_probabilities
                else written.log_probabilities,
                written.steps + 1,
            ),
        )

    return lax.while_loop(more, body, (memory, rows, clock, start))


@jax.jit
def move(memory: Memory, rows: Rows, source: Array) -> tuple[Memory, Rows]:
    """Rows source (R',) of the old ones become the rows; -1 is an idle one."""
    there = source >= 0
    at = jnp.maximum(source, 0)
    rows = jax.tree.map(lambda x: x[at], rows)
    memory = jax.tree.map(lambda x: jnp.take(x, at, axis=1), memory)
    return memory, rows._replace(live=rows.live & there)


def _written(
    program: Program, draw: Draw, logits: Array, member: Array, prompt: Array, made: Array
) -> tuple[Array, Array]:
    token = choose(draw, logits, member, prompt, made, program.sampled)
    if not program.log_probabilities:
        return token, jnp.zeros((), jnp.float32)
    return token, log_probability(draw, logits, token, program.sampled)


def _goes_on(program: Program, token: Array, made: Array) -> Array:
    """Whether a row that has just written `token`, its `made`-th, writes another."""
    ended = jnp.zeros(token.shape, bool)
    for end in program.end:
        ended = ended | (token == end)
    return ~ended & (made < program.max_tokens)
