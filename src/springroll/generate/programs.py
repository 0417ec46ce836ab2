"""The compiled programs of generation: read a beginning, take rows in, write on, move rows."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.compat import edge_jit, frugal_jit
from springroll.evolve.members import Members
from springroll.evolve.rows import Groups
from springroll.generate.forward import read, split_groups, split_layers, step
from springroll.generate.prompts import Prompts as Asked
from springroll.generate.prompts import Reading
from springroll.generate.sampling import Draw, choose, log_probability
from springroll.models.protocols import Entries, Generative, Memory
from springroll.trees import PyTree


@dataclass(frozen=True)
class Program:
    """What programs are compiled for, beside shapes."""

    model: Generative
    dtype: np.dtype  # of the memory and of real factors: that of the weights
    end: tuple[int, ...]
    max_tokens: int
    length: int  # of the memory, in tokens
    sampled: bool
    log_probabilities: bool


class Rows(NamedTuple):
    """All that is known of every row beside its memory; every array (R,)."""

    token: Array  # int32, the last one written and not yet read
    seen: Array  # int32, tokens read
    written: Array  # int32, tokens written
    live: Array  # bool
    member: Array  # int32
    prompt: Array  # int32
    sign: Array  # float32


class Source(NamedTuple):
    """What prompts are read with."""

    params: PyTree  # as they are stored
    members: Members | None  # with their factors; None: all rows are of the weights themselves
    draw: Draw


class Writer(NamedTuple):
    """What steps write with."""

    params: PyTree  # of `step_weights`
    groups: Groups | None  # of `step_groups`; None: all rows are of the weights themselves
    draw: Draw


class Prompts(NamedTuple):
    """Prompts to be read: U lines of h, each of one pair."""

    tokens: Array | np.ndarray  # (U, h, T) int32, padded on the left
    length: Array | np.ndarray  # (U, h) int32
    sign: Array | np.ndarray  # (U, h) float32
    pair: Array | np.ndarray  # (U,) int32

    @classmethod
    def of(cls, prompts: Asked, reading: Reading) -> "Prompts":
        """Those of a reading."""
        return cls(
            tokens=prompts.padded(reading.prompt),
            length=np.where(reading.prompt >= 0, prompts.lengths[reading.prompt], 1),
            sign=reading.sign,
            pair=reading.pair,
        )


class Beginning(NamedTuple):
    """What all prompts begin with, as read with K weights."""

    entries: Entries  # (L, K, ...)
    place: Array | np.ndarray  # (U, h) int32: which of the K each prompt goes on from
    length: Array | np.ndarray  # () int32, tokens


class Begun(NamedTuple):
    """Rows that go on from prompts; every array (R,). A row past the last is one to drop."""

    row: Array | np.ndarray  # int32
    source: Array | np.ndarray  # int32: which of the U h prompts
    member: Array | np.ndarray  # int32
    prompt: Array | np.ndarray  # int32
    sign: Array | np.ndarray  # float32


class Written(NamedTuple):
    """What a segment wrote: tokens (R, n) int32, log-probabilities (R, n) or (R, 0), steps ()."""

    tokens: Array
    log_probabilities: Array
    steps: Array


def idle(rows: int) -> Rows:
    """Rows that hold nothing."""
    zero, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    return Rows(zero, zero, zero, no, zero, zero, jnp.zeros(rows, jnp.float32))


def _takes_layers(model: Generative) -> bool:
    """Whether steps of the model take a list of layers in the place of their stack."""
    return getattr(model, "apart", False)


def step_weights(program: Program, params: PyTree) -> PyTree:
    """The parameters as steps take them."""
    return split_layers(params) if _takes_layers(program.model) else params


@functools.partial(jax.jit, static_argnums=0)
def step_groups(program: Program, members: Members, pairs: Array) -> Groups:
    """Groups of the pairs (G,) as steps take them."""
    groups = row_groups(program, members, pairs)
    return split_groups(groups) if _takes_layers(program.model) else groups


def row_groups(program: Program, members: Members, pairs: Array) -> Groups:
    """Groups of the pairs (G,), their real factors in the type of the weights."""
    real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    groups = members.groups(pairs)
    return groups.map_factors(lambda _, x: x.astype(program.dtype) if real(x) else x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def memory(program: Program, rows: int) -> Memory:
    """Of rows that have seen nothing; every array its own, to be written in place."""
    return program.model.memory(rows, program.length, program.dtype)


def unread(program: Program, source: Source, count: int, length: int) -> Entries:
    """Shapes of what a reading of `length` tokens leaves behind, with `count` weights."""
    return _unread.eval_shape(program, source, count, length)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))  # traced once, on whichever device
def _unread(program: Program, source: Source, count: int, length: int) -> Entries:
    one = np.ones((1, 1), np.int32)
    tokens = np.zeros((1, 1, length), np.int32)
    nothing = Prompts(tokens, length * one, one.astype(np.float32), np.zeros(1, np.int32))
    entries = jax.eval_shape(lambda: _read(program, source, nothing, None)[1])
    return jax.tree.map(lambda x: jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype), entries)


@functools.partial(frugal_jit, static_argnums=0, donate_argnames="entries")
def begin(
    program: Program,
    source: Source,
    prompts: Prompts,
    origin: Array,
    place: Array,
    entries: Entries,
) -> Entries:
    """Read a beginning: that of weights origin[i] of the U h is kept at place[i]; both (K',)."""
    _, new = _read(program, source, prompts, None)
    put = lambda old, new: old.at[:, place].set(new[:, origin], mode="drop", unique_indices=True)
    return jax.tree.map(put, entries, new)


def _read(
    program: Program, source: Source, prompts: Prompts, before: Beginning | None
) -> tuple[Array, Entries]:
    groups, known = None, None
    if source.members is not None:
        groups = row_groups(program, source.members, jnp.asarray(prompts.pair))
    if before is not None:
        place = jnp.asarray(before.place).reshape(-1)
        known = jax.tree.map(lambda x: jnp.take(x, place, axis=1), before.entries)
    sign, tokens, lengths = (jnp.asarray(x) for x in (prompts.sign, prompts.tokens, prompts.length))
    return read(program.model, groups, source.params, sign, tokens, lengths, known)


@functools.partial(frugal_jit, static_argnums=0, donate_argnames="memory")
def take_in(
    program: Program,
    source: Source,
    clock: Array,
    prompts: Prompts,
    begun: Begun,
    memory: Memory,
    rows: Rows,
    before: Beginning | None = None,
) -> tuple[Memory, Rows, Array, Array]:
    """Read prompts, and write the first token of each row that goes on from one.

    With `before` the prompts are what comes after their beginning. Returns memory, rows, and of
    everything begun, in order, its token and log-probability.
    """
    logits, entries = _read(program, source, prompts, before)
    at, origin, member, prompt, sign = (jnp.asarray(x) for x in begun)
    entries = jax.tree.map(lambda x: jnp.take(x, origin, axis=1), entries)
    memory = program.model.admit(memory, entries, at, clock)
    count = jnp.zeros(at.shape, jnp.int32)
    token, log_p = _written(program, source.draw, logits[origin], member, prompt, count)
    live = _goes_on(program, token, count + 1)
    seen = jnp.asarray(prompts.length).reshape(-1)[origin]
    seen = seen if before is None else seen + before.length
    new = Rows(token, seen, count + 1, live, member, prompt, sign)
    put = lambda old, new: old.at[at].set(new, mode="drop", unique_indices=True)
    return memory, jax.tree.map(put, rows, new), token, log_p


@functools.partial(edge_jit, frugal=True, static_argnums=(0, 1), donate_argnames="memory")
def write_on(
    program: Program,
    most: int,
    writer: Writer,
    least: Array,
    clock: Array,
    memory: Memory,
    rows: Rows,
) -> tuple[Memory, Rows, Array, Written]:
    """Steps of all rows, at most `most`, until no more than `least` () rows are live.

    Returns memory, rows, clock, and what was written.
    """
    count = rows.token.shape[0]
    groups = count if writer.groups is None else writer.groups.count
    start = Written(
        jnp.zeros((count, most), jnp.int32),
        jnp.zeros((count, most if program.log_probabilities else 0), jnp.float32),
        jnp.int32(0),
    )

    def more(carry: tuple[Memory, Rows, Array, Written]) -> Array:
        _, rows, _, written = carry
        live = jnp.sum(rows.live, dtype=jnp.int32)
        return (written.steps < most) & (live > least)

    def body(
        carry: tuple[Memory, Rows, Array, Written],
    ) -> tuple[Memory, Rows, Array, Written]:
        memory, rows, clock, written = carry
        sign = rows.sign.reshape(groups, -1)
        logits, entries = step(
            program.model,
            writer.groups,
            writer.params,
            sign,
            rows.token,
            memory,
            rows.seen,
            clock,
        )
        token, log_p = _written(
            program, writer.draw, logits, rows.member, rows.prompt, rows.written
        )
        # Tokens are never negative, which XLA does not know: it must not write to the memory before
        # all of it has been read, or it would copy it.
        memory = program.model.keep(memory, entries, clock + (token[0] >> 31))
        live = rows.live.astype(jnp.int32)
        count = rows.written + live
        rows = rows._replace(
            token=token,
            seen=rows.seen + live,
            written=count,
            live=rows.live & _goes_on(program, token, count),
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
    holds = source >= 0
    at = jnp.maximum(source, 0)
    rows = jax.tree.map(lambda x: x[at], rows)
    memory = jax.tree.map(lambda x: jnp.take(x, at, axis=1), memory)
    return memory, rows._replace(live=rows.live & holds)


def _written(
    program: Program, draw: Draw, logits: Array, member: Array, prompt: Array, count: Array
) -> tuple[Array, Array]:
    token = choose(draw, logits, member, prompt, count, program.sampled)
    if not program.log_probabilities:
        return token, jnp.zeros((), jnp.float32)
    return token, log_probability(draw, logits, token, program.sampled)


def _goes_on(program: Program, token: Array, count: Array) -> Array:
    """Whether a row that has just written `token`, its `count`-th, writes another."""
    ended = jnp.zeros(token.shape, bool)
    for end in program.end:
        ended = ended | (token == end)
    return ~ended & (count < program.max_tokens)
