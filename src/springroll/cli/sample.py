"""`springroll sample RUN`: let a run, or a model in a Hugging Face folder, write text."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from springroll.atomic import replacing
from springroll.cli.options import parse
from springroll.cli.token_model import token_model, write
from springroll.cli.trained import Trained, load
from springroll.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Generate text with the weights of a run's newest checkpoint, or of a model, and print it."""

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run, a Hugging Face folder, or a name on the hub."""
    prompt: str = ""
    """What the text begins with."""
    chat: bool = False
    """The prompt is a user's message, put into the model's chat template."""
    length: int = 512
    """Bytes to generate; of a model with a tokenizer, tokens at most."""
    temperature: float = 0.7
    """1 draws from the model's distribution, less is safer, 0 always takes the likeliest."""
    seed: int = 0
    """Equal seeds write equal text."""
    out: str | None = None
    """Also write the bytes, as they are, to this file."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"length is {self.length}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; it must be between 0 and 2^63 - 1")


def run(argv: Sequence[str]) -> int:
    """Generate and print."""
    options = parse(SampleOptions, argv, prog="springroll sample")
    text = written(options)
    if options.out is not None:
        with replacing(Path(options.out)) as file:
            file.write(text)
    print(printable(text))
    return 0


def written(options: SampleOptions) -> bytes:
    """The prompt and what follows; notes go to standard error."""
    how: dict[str, Any] = {
        "length": options.length,
        "temperature": options.temperature,
        "seed": options.seed,
    }
    with_tokens = token_model(options.run)
    if with_tokens is not None:
        _say(with_tokens.notes)
        return write(with_tokens, options.prompt, chat=options.chat, **how).encode()
    if options.chat:
        raise InputError(f"{options.run} reads bytes and has no chat template; leave out --chat")
    trained = load(options.run)
    _say(trained.notes)
    prompt = options.prompt.encode(errors="replace")
    return prompt + generate(trained, prompt, **how)


def _say(notes: list[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr)


def generate(
    trained: Trained, prompt: bytes, *, length: int, temperature: float, seed: int
) -> bytes:
    """`length` bytes that follow the beginning of a document and `prompt`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from springroll.models.egg import SEPARATOR

    def draw(logits: Any, key: Any) -> Any:
        if temperature == 0:
            return jnp.argmax(logits).astype(jnp.uint8)
        return jax.random.categorical(key, logits / jnp.float32(temperature)).astype(jnp.uint8)

    start = np.frombuffer(bytes([SEPARATOR]) + prompt, np.uint8)
    return trained.model.write(trained.params, start, length, draw, seed)


def printable(text: bytes) -> str:
    """Text that is safe on a terminal: escapes and other control characters become a mark.

    The byte between documents is shown as an empty line.
    """
    decoded = text.decode(errors="replace").replace("\0", "\n\n")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in decoded)
