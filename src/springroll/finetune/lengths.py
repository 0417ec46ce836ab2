"""How long prompts and answers may be: what a model reads at once, and what a task needs."""

from dataclasses import replace

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.tasks.problem import TextTask


def with_lengths(config: FinetuneConfig, task: TextTask, context: int | None) -> FinetuneConfig:
    """The config with what an answer may take, and a prompt at most.

    An answer may take what the task says (half of the context at most), a prompt the rest of the
    context. Where none is known, and in runs of earlier versions, no prompt is too long.

    Args:
        config: as it was given.
        task: whose answers they are.
        context: tokens that the model reads at once; None where that is not known.

    Raises:
        InputError: they do not fit the context.
    """
    tokens = config.max_tokens or task.answer_tokens
    if context is None:
        return replace(config, max_tokens=tokens)
    if config.max_tokens is None:
        tokens = max(1, min(tokens, context // 2))
    room = context - tokens
    if room < 1:
        raise InputError(
            f"the model reads {context:,} tokens at most, and max_tokens is {tokens:,}: no prompt "
            f"has room beside such an answer; give fewer"
        )
    longest = config.max_prompt_tokens or room
    if longest > room:
        raise InputError(
            f"max_prompt_tokens {longest:,} and max_tokens {tokens:,} are {longest + tokens:,} "
            f"tokens; the model reads {context:,} at most: give fewer"
        )
    return replace(config, max_tokens=tokens, max_prompt_tokens=longest)
