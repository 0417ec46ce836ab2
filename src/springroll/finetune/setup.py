"""What both methods of fine-tuning share: the model, its tokenizer, the problems, generation."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from springroll.bounded import opened
from springroll.errors import InputError
from springroll.evolve.momentum import Momentum
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.judging import Judged, judged
from springroll.generate.generator import Generated, Generator
from springroll.generate.stopping import StopStrings
from springroll.hub import hf_folder
from springroll.memory import available_bytes, check_fits
from springroll.models.decoder_config import size
from springroll.models.hf.files import family_of, open_hf, weight_files
from springroll.models.hf.load import load_hf
from springroll.models.protocols import Generative, LanguageModel
from springroll.run.job import Explained
from springroll.tasks.problem import Problem, TextTask
from springroll.tasks.task_line import task_of_line
from springroll.tokens.tokenizer import Tokenizer, end_tokens, open_tokenizer, prompt_tokens
from springroll.trees import PyTree

PROBLEM = 500  # bytes of a problem, at least
ENDS = 1 << 16  # bytes of both ends of a file that go into its fingerprint


class Asked(NamedTuple):
    """Problems, and their prompts as the model reads them."""

    problems: list[Problem]
    prompts: list[list[int]]


class WritingModel(Generative, LanguageModel, Protocol):
    """A language model that writes, and whose probabilities have gradients."""


LARGE = 1 << 24  # parameters from which on momentum is worth more memory than time


@dataclass(frozen=True)
class Setup:
    """A model that is to answer the problems of a task."""

    model: WritingModel
    folder: Path
    tokenizer: Tokenizer
    task: TextTask
    generator: Generator  # as configured
    greedy: Generator  # the same at temperature 0, for validation
    parameters: int
    held_out: Asked

    def params(self, dtype: DTypeLike = jnp.float32) -> PyTree:
        """The weights in the folder, on the device."""
        return load_hf(self.folder, dtype)[1]

    @property
    def shapes(self) -> PyTree:
        """What `params` returns, without values."""
        config = self.model.config
        one = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.tree.map(one, family_of(config).shapes(config), is_leaf=_is_shape)

    def explained(self) -> Explained:
        """The logits of a row of tokens."""
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        return Explained(self.model.apply, self.shapes, (tokens,))

    def asked(self, problems: Sequence[Problem]) -> Asked:
        """Problems with their prompts."""
        return Asked(list(problems), [self.tokens_of(each) for each in problems])

    def tokens_of(self, problem: Problem) -> list[int]:
        """The prompt of a problem as the model reads it.

        Raises:
            InputError: the chat template refuses its messages; the line says which record it is.
        """
        tools = {"tools": problem.tools} if problem.tools else {}
        chat = bool(tools) or (self.task.chat and self.tokenizer.chats)
        try:
            return prompt_tokens(self.tokenizer, problem.prompt, chat, **tools)
        except InputError as error:
            if not problem.where:
                raise
            raise InputError(f"{problem.where} is no prompt: {error}") from None

    def train(self, generation: int, count: int) -> Asked:
        """The problems of a generation, `count` of them."""
        first = generation * count
        return self.asked([self.task.train(first + i) for i in range(count)])

    def judged(self, asked: Asked, generated: Generated) -> Judged:
        """What the answers are worth."""
        return judged(self.task, self.tokenizer, asked.problems, generated)

    def validated(self, params: PyTree) -> dict[str, float]:
        """Figures of weights on the held-out problems, answered greedily."""
        generated = self.greedy.run(params, None, self.held_out.prompts)
        return self.judged(self.held_out, generated).figures("valid_")

    @property
    def held_out_line(self) -> str:
        """How many held-out problems there are. A small task repeats them: that is said."""
        count = len(self.held_out.prompts)
        different = len(set(map(tuple, self.held_out.prompts)))
        repeated = f", of which {different:,} are different" if different < count else ""
        return f"{count:,} held-out problem{'' if count == 1 else 's'}{repeated}"

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same when a run goes on."""
        return {"model": fingerprint(self.folder), **self.task.identity}


def resolved(config: FinetuneConfig, parameters: int) -> FinetuneConfig:
    """The config of a new run, with what its continuations must not decide anew.

    Runs from before momentum could be made again say nothing of it (None): they keep theirs, and
    are updated whole. The rate of a large model moves it by one sigma per generation, momentum
    included.
    """
    if config.method != "es":
        return config
    sgd, large = config.optimizer in (None, "sgd"), parameters > LARGE
    if config.lr is None and sgd and large:
        config = replace(config, lr=float(f"{1 - config.momentum:.4g}"))
    if config.momentum_generations is not None:
        return config
    again = sgd and large and config.momentum > 0 and config.state_bits == 32
    generations = Momentum.of(config.momentum).generations if again else 0
    return replace(config, momentum_generations=generations)


def prepare(config: FinetuneConfig) -> Setup:
    """Find the model, its tokenizer and the task; weights are read later.

    Raises:
        InputError: one of them is missing or does not fit the others.
    """
    folder = hf_folder(require_model(config))
    usual = {"seed": config.seed} | ({"data": config.data} if config.data else {})
    task = task_of_line(config.task, **usual)
    tokenizer = open_tokenizer(folder)
    config_of = open_hf(folder).config
    family = family_of(config_of)
    model = family.model(config_of)
    stop = StopStrings(task.stop, tokenizer.decode) if task.stop else None
    generator = Generator(
        model=model,
        end=end_tokens(tokenizer, task.stop),
        max_tokens=config.max_tokens,
        temperature=config.sampling_temperature,
        **config.bounds,
        stop=stop,
        rows=config.rows,
        memory_bytes=None if config.rows else memory_of(config),
        log_probabilities=config.method == "grpo",
    )
    greedy = Generator(
        model=model,
        end=generator.end,
        stop=stop,
        max_tokens=config.max_tokens,
        rows=config.rows,
        memory_bytes=generator.memory_bytes,
    )
    setup = Setup(
        model=model,
        folder=folder,
        tokenizer=tokenizer,
        task=task,
        generator=generator,
        greedy=greedy,
        parameters=size(family.shapes(config_of)),
        held_out=Asked([], []),
    )
    most = min(config.eval_problems, task.held_out_size or config.eval_problems)
    needed = most * (4 * config.max_tokens + PROBLEM)
    check_fits(needed, f"{most:,} held-out problems (eval_problems) and their answers")
    setup.asked(task.forms)  # what the template refuses is found now
    return replace(setup, held_out=setup.asked([task.held_out(i) for i in range(most)]))


def _is_shape(node: PyTree) -> bool:
    return isinstance(node, tuple)


def memory_of(config: FinetuneConfig) -> int:
    """Bytes for what the rows under generation remember."""
    return config.cache_bytes or (available_bytes() or (4 << 30)) // 2


@functools.cache
def fingerprint(folder: Path) -> str:
    """16 hex digits of a model's files: their names, sizes and both ends of each."""
    whole = hashlib.sha256()
    files = {path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".pth")}
    if not any(path.suffix != ".json" for path in files):
        files.update(weight_files(folder))
    for path in sorted(files):
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(ENDS)
            file.seek(max(0, size - ENDS))
            whole.update(f"{path.name} {size}".encode() + start + file.read())
    return whole.hexdigest()[:16]


def decaying(value: float, half: float | None) -> float | Callable[[ArrayLike], Array]:
    """A schedule that has fallen to half of `value` after so many generations."""
    if half is None:
        return value
    return lambda step: value / (1 + jnp.asarray(step, jnp.float32) / half)


def require_model(config: FinetuneConfig) -> str:
    """The model's folder or hub name."""
    if not config.model:
        raise InputError(
            "give --model FOLDER or a hub name; springroll export writes the model of a run of "
            "springroll train as such a folder"
        )
    return config.model
