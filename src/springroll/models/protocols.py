"""What training, streaming and generation ask of a model.

`LanguageModel` is what training asks, `Stages` a model in parts, whose layers are walked one by
one, and `Generative` what `springroll.generate` needs to write text.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from springroll.errors import InputError, check_takes, kind_of
from springroll.models.decoder_config import DecoderConfig
from springroll.models.packed import Batch
from springroll.models.rwkv7.config import RWKV7Config
from springroll.trees import Params, PyTree

Metrics: TypeAlias = dict[str, Array]
Memory: TypeAlias = PyTree  # arrays (L, R, ...): layers, then rows
Entries: TypeAlias = PyTree  # what read or step adds to a memory: arrays (L, R, ...)


class LanguageModel(Protocol):
    """Functions of parameters whose blocks are stacked in `params["layers"]`; hashable."""

    @property
    def config(self) -> DecoderConfig | RWKV7Config:
        """Its shape."""
        ...

    def init(self, key: Array, dtype: DTypeLike = ...) -> Params:
        """Fresh parameters."""
        ...

    def apply(self, params: Params, tokens: Array) -> Array:
        """tokens (batch, time) integers -> logits (batch, time, V) float32."""
        ...

    def loss(self, params: Params, tokens: Batch) -> tuple[Array, Metrics]:
        """tokens (batch, time + 1) -> mean nats per predicted token () float32, and metrics."""
        ...

    def token_nats(
        self, params: Params, tokens: Array, targets: Array, temperature: float = 1.0
    ) -> tuple[Array, Metrics]:
        """Nats of each of the targets (batch, time) after the tokens, 0 of negative ones."""
        ...


class Stages(Protocol):
    """A model in three parts: embed, one block after the other, finish.

    Its parameters are a dictionary with the layers, stacked, under the name `stack`; "rest" is the
    dictionary without them. `x` is any tree of arrays. Decoders and the byte model are such models:

        x, kept = model.embed(rest, read_part(inputs)), []
        for index, layer in enumerate(layers):
            x, of_layer = model.block(layer, x, index)
            kept.append(of_layer)
        loss, metrics = model.finish(rest, x, stacked(kept), inputs)

    A model whose `embed` reads a table (V, D) by `jnp.take(table, tokens, axis=0)`, and nothing
    else of it or of the tokens, names it in an attribute `table`: a large one then stays on the
    host, and `embed` is given the rows that are read, with their places as tokens.

    A model whose `finish` applies `cross_entropy.token_nats` once, to (batch, time, D) in the type
    of the weights, a head (V, D) without a cap and the targets that `packed.learnt` gives, names
    that head in an attribute `sliced_head`. Its gradient is then made in slices of the vocabulary.

    Evolution takes minus the loss as fitness and gives `finish` no statistics ({}), so that losses
    that only serve the training of a router take no part.
    """

    @property
    def stack(self) -> str:
        """Where in the parameters the layers are, such as "layers"."""
        ...

    @property
    def embed(self) -> Callable[[Params, PyTree], PyTree]:
        """(rest, `read_part` of the inputs) -> x"""
        ...

    @property
    def block(self) -> Callable[..., tuple[PyTree, PyTree]]:
        """(one layer, x, its index () int32) -> (x, statistics of the layer)

        A recurrent model takes its memory of the layer as a fourth argument and returns the memory
        after it in place of statistics.
        """
        ...

    @property
    def finish(self) -> Callable[[Params, PyTree, PyTree, PyTree], tuple[Array, Metrics]]:
        """(rest, x, statistics stacked over the layers, inputs) -> (loss (), metrics)"""
        ...


PARTS = ("stack", "embed", "block", "finish")


def read_part(inputs: PyTree) -> PyTree:
    """What `Stages.embed` reads of the inputs that `finish` gets.

    Of tokens, an array of integers (time + 1,) or (batch, time + 1), these are all but the last,
    which is only predicted; other trees, such as pictures, are read whole.
    """
    array = hasattr(inputs, "shape") and inputs.ndim in (1, 2)
    tokens = array and jnp.issubdtype(inputs.dtype, jnp.integer)
    return inputs[..., :-1] if tokens else inputs


def checked_stages(model: Stages, params: PyTree) -> Stages:
    """The model, if it has all parts and `params` its stack of layers.

    Args:
        model: what is to be walked layer by layer.
        params: its parameters, or their shapes.

    Raises:
        InputError: a part is missing, or the stack; leaves of the stack differ in their first
            axis, or have none.
    """
    missing = [name for name in PARTS if not hasattr(model, name)]
    if missing:
        raise InputError(
            f"{type(model).__name__} has no {', '.join(missing)}; a model that is walked layer "
            f"by layer has {', '.join(PARTS)} (see springroll.models.Stages)"
        )
    if isinstance(params, dict) and isinstance(params.get(model.stack), list | tuple):
        raise InputError(
            f"{model.stack!r} is a list of {len(params[model.stack])}; blocks that are walked one "
            "by one are alike and stacked along the first axis of each array, as by jax.tree.map("
            "lambda *w: jnp.stack(w), *blocks); blocks of different shapes are not walked"
        )
    if not isinstance(params, dict) or not isinstance(params.get(model.stack), dict):
        names = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise InputError(
            f"the parameters hold {names}; expected a dictionary with stacked layers in "
            f"{model.stack!r}"
        )
    stack_depth(params[model.stack], model.stack)
    return model


def check_arguments(model: Stages) -> None:
    """Refuse parts that cannot be called as a step of gradients calls them; those of a population
    may take what members keep as well.

    Raises:
        InputError: one takes other arguments.
    """
    for part, given in (("embed", 2), ("block", 3), ("finish", 4)):
        check_takes(getattr(model, part), part, *range(given))


def pair_of(result: object, part: str, expected: str) -> tuple[PyTree, PyTree]:
    """What a part of a model returned, if it is two things.

    Raises:
        InputError: it is not; the message names the part and what was expected.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError(f"{part} returns {kind_of(result)}; expected {expected}")
    return result


def stack_depth(layers: PyTree, stack: str) -> int:
    """The number of layers of a stack, which is the first axis of each of its leaves.

    Raises:
        InputError: it is not; the message names the stack.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(layers)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise InputError(
            f"arrays below {stack!r} begin with axes of {sorted(sizes)}; expected the same number "
            "of layers in all, at least one"
        )
    return sizes.pop()[0]


class Generative(Protocol):
    """What a model offers to write text; hashable, since compiled programs are cached by model.

    Letters: L layers, R rows (sequences), T tokens of a bucket of prompts, V vocabulary.

    A row remembers what it has read: a decoder its keys and values, a recurrent model its state.
    `read` and `step` compute with parameters; they run under `jax.vmap` and `springroll.thin`,
    where every member of a population has its own parameters and the base weights are multiplied
    once for all rows. `admit` and `keep` store; they see no parameter and run outside of it, so
    that a big memory is written in place.

        memory = model.memory(R, length, dtype)
        logits, entries = model.read(params, prompts, lengths)   # all tokens of some prompts
        memory = model.admit(memory, entries, rows, clock)       # as the beginnings of these rows
        logits, entries = model.step(params, tokens, memory, seen, clock)  # one more per row
        memory = model.keep(memory, entries, clock)

    `clock` () int32, 0 <= clock < length, counts steps modulo `length` and is the same for all
    rows: it is where a step's keys and values are written. A prompt of n tokens is admitted as if
    its tokens had been the n last steps. Rows that began at different times need no care that way:
    a row that has seen n tokens sees the last n steps. Recurrent models ignore `clock`, `seen` and
    `length`.

    A model with an attribute `apart` that is true is handed `params["layers"]` as a list of layers
    in `step` (in `read` as the stack it is): a step that cuts layers out of a stack copies every
    weight and every row's memory before it uses them. For the same reason the parts of a memory may
    have L = 1 and come one by one.

    A model with a method `reads_on(n)` that is true of prompts of up to n tokens takes a beginning
    that they share from one reading of it: `read(params, tokens, lengths, before)`, where `before`
    are the entries of R rows that have read the beginning, without padding, and tokens the rest of
    each prompt. Logits and entries are those of the whole prompts.
    """

    def memory(self, rows: int, length: int, dtype: DTypeLike) -> Memory:
        """Of rows that have seen nothing, with room for `length` tokens per row."""
        ...

    def read(self, params: Params, tokens: Array, lengths: Array) -> tuple[Array, Entries]:
        """Whole prompts: (logits (R, V) float32 after the last token, what is remembered).

        tokens (R, T) int32 are padded on the left: those of row b are its last lengths[b] >= 1.
        What stands in the padding changes nothing.
        """
        ...

    def admit(self, memory: Memory, entries: Entries, rows: Array, clock: Array) -> Memory:
        """The memory in which the prompts that `read` returned are the beginnings of `rows`.

        rows (prompts,) int32, all different; a prompt with a row out of range is dropped.
        """
        ...

    def step(
        self, params: Params, tokens: Array, memory: Memory, seen: Array, clock: Array
    ) -> tuple[Array, Entries]:
        """One token (R,) int32 of every row: (logits (R, V) float32 after it, what to keep).

        seen (R,) int32 is how many tokens each row has read before: the position of this one.
        """
        ...

    def keep(self, memory: Memory, entries: Entries, clock: Array) -> Memory:
        """The memory after the step at `clock`."""
        ...
