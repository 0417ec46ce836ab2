"""A plan of fine-tuning that somebody asks for: a model by its name, a device by its name."""

from dataclasses import replace
from typing import Any

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.generation_plan import GenerationPlan, generation_plan, shapes_of
from springroll.finetune.setup import WritingModel, resolved
from springroll.finetune.traced_plan import traced_plan
from springroll.memory import spelt
from springroll.models.decoder_config import size
from springroll.models.hf.family import Config
from springroll.models.hf.files import context_length, family_of
from springroll.planner.asked_model import config_at
from springroll.planner.devices import Device, Rates, assumed_rates, device_of
from springroll.planner.measured_rates import quick_rates
from springroll.run.config import check_sizes

MOST_TOKENS = 1 << 24  # of prompt and answer


def asked_plan(
    model: str, device: str, prompt_tokens: int, **options: Any
) -> tuple[str, GenerationPlan]:
    """(the model for people, the plan of a generation). Compiles for seconds to a minute.

    Args:
        model: what `springroll finetune --model` takes, or a named shape.
        device: as `planner.devices.device_of` takes it.
        prompt_tokens: of every prompt.
        options: fields of `FinetuneConfig`.

    Raises:
        InputError: there is no such model or device, the context is too short, or it does not fit:
            what it needs, and the nearest that fits.
    """
    config = FinetuneConfig(model=model, **options)
    check_sizes(config)
    shape = config_of(model, prompt_tokens, config.max_tokens or 1)
    on = device_of(device)
    rates = quick_rates() if on.card is None else assumed_rates(on.card)
    family = family_of(shape)
    writes, numbers = family.model(shape), size(family.shapes(shape))
    own = resolved(config, numbers)
    plan = planned_on(on, rates, own, writes, prompt_tokens)
    if plan.fits:
        plan = traced_plan(own, writes, prompt_tokens, plan, platform=on.platform)
    if plan.fits:
        return f"{model} on {on.name}", plan
    message = f"{model} with {config.population:,} members needs {spelt(plan.taken.peak)} of memory"
    message += f", without answers; {spelt(on.memory)} are given, of which nine tenths are used"
    fewer = max(2, config.population // 8 * 2)
    changes: dict[str, dict[str, Any]] = {
        f"--pop-size {fewer}": {"pop_size": fewer},
        "--weights bfloat16": {"weights": "bfloat16"},
        "--weights int8": {"weights": "int8"},
    }
    for change, given in changes.items():
        other = resolved(replace(config, **given), numbers)
        if other != own and planned_on(on, rates, other, writes, prompt_tokens).fits:
            raise InputError(f"{message}; {change} fits")
    raise InputError(f"{message}; take a smaller model or a larger device")


def planned_on(
    device: Device, rates: Rates, config: FinetuneConfig, model: WritingModel, prompt_tokens: int
) -> GenerationPlan:
    """The plan of a generation, estimated."""
    shapes = shapes_of(config, model)
    return generation_plan(config, shapes, prompt_tokens, device.memory, rates)


def config_of(model: str, prompt_tokens: int, max_tokens: int) -> Config:
    """The shape of a named model, or of that in a folder, on the hub or on the package index.

    Raises:
        InputError: there is none, or it does not read as many tokens.
    """
    tokens = prompt_tokens + max_tokens
    if tokens > MOST_TOKENS:
        raise InputError(
            f"prompts of {prompt_tokens:,} tokens and answers of {max_tokens:,} are {tokens:,} "
            f"tokens; plans are made for {MOST_TOKENS:,} at most"
        )
    shape, where = config_at(model)
    context = None if where is None else context_length(where)
    if context is not None and tokens > context:
        raise InputError(
            f"prompts of {prompt_tokens:,} tokens and answers of {max_tokens:,} are {tokens:,} "
            f"tokens; {model} reads {context:,} at most: give fewer"
        )
    return shape
