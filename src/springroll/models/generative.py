"""What a model must offer so that `springroll.generate` can write text with it.

Letters: L layers, R rows (sequences), T tokens of a bucket of prompts, V vocabulary.

A row remembers what it has read: a decoder its keys and values, a recurrent model its state. `read`
and `step` compute with parameters; they run under `jax.vmap` and `springroll.thin`, where every
member of a population has its own parameters and the base weights are multiplied once for all rows.
`admit` and `keep` store; they see no parameter and run outside of it, so that a big memory is
written in place.

    memory = model.memory(R, length, dtype)
    logits, found = model.read(params, prompts, lengths)      # all tokens of some prompts
    memory = model.admit(memory, found, rows, clock)          # as the beginnings of these rows
    logits, found = model.step(params, tokens, memory, seen, clock)   # one more token of every row
    memory = model.keep(memory, found, clock)

`clock` () int32, 0 <= clock < length, counts steps modulo `length` and is the same for all rows: it
is where a step's keys and values are written. A prompt of n tokens is admitted as if its tokens had
been the n last steps. Rows that began at different times need no care that way: a row that has seen
n tokens sees the last n steps. Recurrent models ignore `clock`, `seen` and `length`.

A model with an attribute `apart` that is true is handed `params["layers"]` as a list of layers in
`step` (in `read` as the stack it is): a step that cuts layers out of a stack copies every weight
and every row's memory before it uses them. For the same reason the parts of a memory may have L = 1
and come one by one.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from jax import Array

Memory: TypeAlias = Any  # a pytree of arrays (L, R, ...): layers, then rows
Found: TypeAlias = Any  # what read or step adds to a memory: arrays (L, R, ...)


class Generative(Protocol):
    """Functions of one model; hashable, since compiled programs are kept by model."""

    def memory(self, rows: int, length: int, dtype: Any) -> Memory:
        """Of rows that have seen nothing, with room for `length` tokens per row."""
        ...

    def read(self, params: Any, tokens: Array, lengths: Array) -> tuple[Array, Found]:
        """Whole prompts: (logits (R, V) float32 after the last token, what is remembered).

        tokens (R, T) int32 are padded on the left: those of row b are its last lengths[b] >= 1.
        What stands in the padding changes nothing.
        """
        ...

    def admit(self, memory: Memory, found: Found, rows: Array, clock: Array) -> Memory:
        """The memory in which the prompts that `read` found are the beginnings of `rows`.

        rows (prompts,) int32, all different; a prompt with a row out of range is dropped.
        """
        ...

    def step(
        self, params: Any, tokens: Array, memory: Memory, seen: Array, clock: Array
    ) -> tuple[Array, Found]:
        """One token (R,) int32 of every row: (logits (R, V) float32 after it, what to keep).

        seen (R,) int32 is how many tokens each row has read before: the position of this one.
        """
        ...

    def keep(self, memory: Memory, found: Found, clock: Array) -> Memory:
        """The memory after the step at `clock`."""
        ...
