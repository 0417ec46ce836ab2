"""A model that reads and writes a tokenizer's tokens: of a Hugging Face folder, or of a run."""

from pathlib import Path
from typing import NamedTuple

from springroll.errors import InputError
from springroll.generate.byte_model import Writing
from springroll.generate.generator import Generator
from springroll.hub import hf_folder, on_an_index
from springroll.models.hf.family import Config as ModelConfig
from springroll.models.hf.files import family_of, is_hf_folder
from springroll.models.hf.load import load_hf
from springroll.models.protocols import Generative
from springroll.tokens.tokenizer import Tokenizer, open_tokenizer, prompt_tokens
from springroll.trees import PyTree


class TokenModel(NamedTuple):
    """A model, its weights and its tokenizer."""

    model: Generative
    params: PyTree
    tokenizer: Tokenizer


def names_model(path: str) -> bool:
    """Whether `path` is a Hugging Face folder, or a name of one elsewhere."""
    return is_hf_folder(path) or on_an_index(path)


def read_token_model(path: str) -> TokenModel:
    """The model in a Hugging Face folder or of a name on the hub.

    Raises:
        InputError: it cannot be read or has no tokenizer.
    """
    folder = hf_folder(path)
    model, params = load_hf(folder)
    return TokenModel(model, params, open_tokenizer(folder, model.config.vocab))


def like_folder(folder: str | Path, config: ModelConfig, params: PyTree) -> TokenModel:
    """Weights that began as those of a Hugging Face folder, with its tokenizer."""
    return TokenModel(family_of(config).model(config), params, open_tokenizer(folder, config.vocab))


def written(model: TokenModel, options: Writing) -> str:
    """The prompt and at most `length` tokens that follow it, as text without special tokens.

    Raises:
        InputError: an empty prompt for a tokenizer that says neither how texts begin nor how they
            end; with `chat`, no chat template.
    """
    tokenizer = model.tokenizer
    # Texts are learnt one after the other: after the end of one another begins.
    start = prompt_tokens(tokenizer, options.prompt, options.chat) or sorted(tokenizer.end)[:1]
    if not start:
        raise InputError("the prompt is empty; give one with --prompt")
    generator = Generator(
        model=model.model,
        end=tokenizer.end,
        max_tokens=options.length,
        temperature=options.temperature,
        **options.bounds,
    )
    generated = generator.run(model.params, None, [start], seed=options.seed)
    answer = generated.tokens[0, 0, : generated.lengths[0, 0]].tolist()
    return tokenizer.decode([*start, *answer])
