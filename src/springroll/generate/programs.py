"""The three compiled programs of generation: take rows in, write on, and move rows together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.evolve.perturbation import Factors, Perturbation
from springroll.generate.rows import Thin, bound, read, step
from springroll.generate.sampling import Draw, choose, log_probability
from springroll.models.generative import Generative, Memory


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

    row: Array  # (U, h) int32
    tokens: Array  # (U, h, T) int32, padded on the left
    length: Array  # (U, h) int32
    member: Array  # (U, h) int32
    prompt: Array  # (U, h) int32
    sign: Array  # (U, h) float32
    pair: Array  # (U,) int32


class Written(NamedTuple):
    """What a segment wrote: tokens (R, n) int32, log-probabilities (R, n) or (R, 0), steps ()."""

    tokens: Array
    log_probabilities: Array
    steps: Array


def idle(rows: int) -> Rows:
    """Rows that hold nothing."""
    zero, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    return Rows(zero, zero, zero, no, zero, zero, jnp.zeros(rows, jnp.float32))


@functools.partial(jax.jit, static_argnums=(0, 3))
def bind(perturbation: Perturbation, drawn: Factors, pairs: Array, dtype: Any) -> Factors:
    """See `rows.bound`."""
    return bound(perturbation, drawn, pairs, dtype)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="memory")
def take_in(
    program: Program,
    dtype: Any,
    params: Any,
    drawn: Factors | None,
    sigma: Array,
    draw: Draw,
    clock: Array,
    prompts: Prompts,
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
    flat = [x.reshape(-1) for x in (prompts.member, prompts.prompt)]
    made = jnp.zeros(at.shape, jnp.int32)
    token, log_p = _written(program, draw, logits, *flat, made)
    new = Rows(
        token,
        prompts.length.reshape(-1),
        made + 1,
        _goes_on(program, token, made + 1),
        *flat,
        prompts.sign.reshape(-1),
    )
    put = lambda old, new: old.at[at].set(new, mode="drop", unique_indices=True)
    return memory, jax.tree.map(put, rows, new), token, log_p


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames="memory")
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

    Returns memory, rows, clock, and what was written.
    """
    count = rows.token.shape[0]
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
            program.perturbation,
            params,
            thin,
            sign,
            rows.token,
            memory,
            rows.seen,
            clock,
        )
        memory = program.model.keep(memory, found, clock)
        token, log_p = _written(program, draw, logits, rows.member, rows.prompt, rows.made)
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
