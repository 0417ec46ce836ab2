"""A trained model that reads and writes bytes, whatever trained it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.generate.sampling import Sampling, bounded
from springroll.models.egg import SEPARATOR
from springroll.trees import PyTree

Draw = Callable[[Array, Array], Array]
"""(logits (256,), key) -> the next byte () uint8."""


class ByteModel(NamedTuple):
    """A model as functions of its weights."""

    bits: Callable[[PyTree, np.ndarray], float]
    """(params, rows (n, T + 1) uint8) -> mean bits per predicted byte; no memory between rows."""
    write: Callable[[PyTree, np.ndarray, int, Draw, int], bytes]
    """(params, text so far (n,) uint8, length, draw, seed) -> the bytes that follow."""


class Writing(Protocol):
    """How text is to be written."""

    @property
    def prompt(self) -> str: ...

    @property
    def chat(self) -> bool:
        """Whether the prompt goes into the model's chat template, as a user's message."""
        ...

    @property
    def length(self) -> int:
        """Bytes to generate; of a model with a tokenizer, tokens at most."""
        ...

    @property
    def temperature(self) -> float:
        """0 takes the likeliest byte or token."""
        ...

    @property
    def bounds(self) -> Mapping[str, Any]:
        """`top_k`, `top_p` and `min_p` of `Sampling`."""
        ...

    @property
    def seed(self) -> int:
        """Equal seeds write equal text."""
        ...


def written(model: ByteModel, params: PyTree, options: Writing) -> bytes:
    """The prompt, and the bytes that follow the beginning of a document and it."""

    sampling = Sampling(options.temperature, **options.bounds).check().draw(options.seed)

    def draw(logits: Array, key: Array) -> Array:
        if options.temperature == 0:
            return jnp.argmax(logits).astype(jnp.uint8)
        scaled = bounded(sampling, logits[None] / sampling.temperature)[0]
        return jax.random.categorical(key, scaled).astype(jnp.uint8)

    prompt = options.prompt.encode(errors="replace")
    start = np.frombuffer(bytes([SEPARATOR]) + prompt, np.uint8)
    return prompt + model.write(params, start, options.length, draw, options.seed)
