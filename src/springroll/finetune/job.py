"""Fine-tuning a language model on a reward: what a run is made of, and running it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from rich.console import Console

    from springroll.finetune.setup import Setup
    from springroll.run.loop import Result
    from springroll.run.task import Task


def finetune(config: FinetuneConfig, console: "Console | None" = None) -> "Result":
    """Run it: a new run folder, or an old one gone on with; progress on `console`.

    Raises:
        InputError: the model, its tokenizer or the task cannot be read, the folder holds another
            run, or a figure is off.
    """
    from springroll.finetune.setup import prepare
    from springroll.run.folder import open_run
    from springroll.run.loop import run

    if config.resume:
        folder, config = open_run(config, FinetuneConfig())
        setup = prepare(config)
        task = task_of(config, setup)
    else:
        setup = prepare(config)  # first: wrong options leave no folder behind
        task = task_of(config, setup)
        folder, config = open_run(config, FinetuneConfig())
    if console is not None:
        console.print(opening(config, setup), markup=False, highlight=False)
    try:
        return run(config, task, folder, console=console)
    finally:
        setup.task.close()
        if console is not None and setup.task.failures:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in setup.task.failures.items())
            console.print(f"answers that could not be scored: {kinds}")


def task_of(config: FinetuneConfig, setup: "Setup") -> "Task":
    """What the loop trains."""
    if config.method == "grpo":
        from springroll.finetune.grpo import grpo_task

        return grpo_task(config, setup)
    from springroll.finetune.evolution import es_task

    return es_task(config, setup)


def weights_of(config: FinetuneConfig, setup: "Setup") -> "tuple[Any, str, Callable[[Any], Any]]":
    """Where the weights of a run are saved: (shapes of a part, its path, part -> float weights)."""
    if config.method == "grpo":
        from springroll.finetune.grpo import saved_weights
    else:
        from springroll.finetune.evolution import saved_weights
    return saved_weights(config, setup)


def opening(config: FinetuneConfig, setup: "Setup") -> str:
    """What learns what, before it starts."""
    each = "answers per prompt" if config.method == "grpo" else "members"
    return (
        f"{config.model}: {setup.parameters:,} {config.weights} parameters; {setup.task.name}; "
        f"{config.method} with {config.population:,} {each}, {config.num_prompts:,} prompts a "
        f"generation, up to {config.max_tokens:,} tokens an answer"
    )


def require_model(config: FinetuneConfig) -> str:
    """The model's folder or hub name."""
    if not config.model:
        raise InputError(
            "give --model FOLDER or a hub name; springroll export writes the model of a run of "
            "springroll train as such a folder"
        )
    return config.model
