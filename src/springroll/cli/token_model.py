"""A model that reads and writes a tokenizer's tokens: of a Hugging Face folder, or of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from springroll.cli.trained import open_folder
from springroll.cli.weights import load_weights, saved_weights
from springroll.errors import InputError
from springroll.pretrain.config import PretrainConfig

if TYPE_CHECKING:
    from springroll.tokens.tokenizer import Tokenizer


class TokenModel(NamedTuple):
    """A model, its weights and its words."""

    model: Any
    params: Any
    tokenizer: "Tokenizer"
    notes: list[str]  # checkpoints passed over, one line each


def token_model(path: str) -> TokenModel | None:
    """What is at `path`; None if that is a run whose model reads bytes (see `cli.trained`).

    Args:
        path: a Hugging Face folder, a name on the hub, or the folder of a run.

    Raises:
        InputError: neither a model nor a run; a run without a checkpoint; no tokenizer.
    """
    from springroll.models.hf.files import is_hf_folder

    if is_hf_folder(path) or _on_the_hub(path):
        return _of_folder(path)
    return _of_run(path)


def write(
    found: TokenModel, prompt: str, *, chat: bool, length: int, temperature: float, seed: int
) -> str:
    """The prompt and at most `length` tokens that follow it, as text without special tokens.

    Raises:
        InputError: an empty prompt for a tokenizer that says neither how texts begin nor how they
            end; with `chat`, no chat template.
    """
    from springroll.generate.generator import Generator
    from springroll.tokens.tokenizer import prompt_tokens

    tokenizer = found.tokenizer
    # Texts are learnt one after the other: after the end of one another begins.
    start = prompt_tokens(tokenizer, prompt, chat) or sorted(tokenizer.end)[:1]
    if not start:
        raise InputError("the prompt is empty; give one with --prompt")
    generator = Generator(
        model=found.model, end=tokenizer.end, max_tokens=length, temperature=temperature
    )
    written = generator.run(found.params, None, [start], seed=seed)
    return tokenizer.decode([*start, *written.tokens[0, 0, : written.lengths[0, 0]].tolist()])


def _on_the_hub(path: str) -> bool:
    """Whether that is OWNER/NAME and nothing here."""
    parts = Path(path).parts
    return len(parts) == 2 and parts[0] not in ("/", "..") and not Path(parts[0]).exists()


def _of_folder(path: str) -> TokenModel:
    from springroll.hub import hf_folder
    from springroll.models.hf.load import load_hf
    from springroll.tokens.tokenizer import open_tokenizer

    folder = hf_folder(path)
    model, params = load_hf(folder)
    return TokenModel(model, params, open_tokenizer(folder, model.config.vocab), [])


def _of_run(path: str) -> TokenModel | None:
    config = open_folder(path)[1]
    if isinstance(config, PretrainConfig) or saved_weights(path, config).like is None:
        return None

    from springroll.models.hf.files import family_of
    from springroll.tokens.tokenizer import open_tokenizer

    weights = load_weights(path)
    assert weights.like is not None
    model = family_of(weights.shape).model(weights.shape)
    tokenizer = open_tokenizer(weights.like, weights.shape.vocab)
    return TokenModel(model, weights.params, tokenizer, weights.notes)
