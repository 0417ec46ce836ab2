"""What generation's programs take on a card: counted, beside what XLA compiles for one."""

from dataclasses import replace
from typing import Any

import jax
import pytest

from springroll.finetune.config import FinetuneConfig
from springroll.finetune.generation_plan import generation_plan, shapes_of
from springroll.finetune.setup import resolved
from springroll.finetune.traced_plan import traced_plan
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.planner.devices import device_of

TINY: dict[str, Any] = {"model": "m", "pop_size": 8, "prompts": 2, "max_tokens": 8}


@pytest.mark.parametrize("name", ["llama-tiny", "moe-tiny"])
@pytest.mark.parametrize("options", [{}, {"weights": "int8"}, {"weights": "float32", "rank": 3}])
def test_factors_have_the_shapes_of_those_that_are_drawn(name, options):
    config = resolved(FinetuneConfig(**(TINY | options)), CONFIGS[name].parameters)
    shapes = shapes_of(config, decoder(CONFIGS[name]))

    def drawn(state):
        members = shapes.strategy.ask(state)
        return members if members.factors is not None else members.keep_factors()

    assert shapes.members() == jax.eval_shape(drawn, shapes.state)


def counted(name, card, tokens, few=None, layers=None, **options):
    """What programs take at this shape, of all layers or of a few, on a card."""
    shape = CONFIGS[name]
    config = resolved(FinetuneConfig(**options), shape.parameters)
    model, memory = decoder(shape), device_of(card).memory
    plan = generation_plan(config, shapes_of(config, model), tokens, memory, None)
    model = decoder(replace(shape, layers=layers or shape.layers))
    return traced_plan(config, model, tokens, plan, "gpu", few=few).taken


SMALL = TINY | {"pop_size": 64, "prompts": 4, "max_tokens": 64, "weights": "bfloat16"}
LONGER = SMALL | {"pop_size": 256, "prompts": 16, "max_tokens": 512, "rank": 4}
FLOATS = SMALL | {"pop_size": 32, "prompts": 8, "weights": "float32"}
# MiB while prompts are read and while answers are written, of two layers, as XLA compiles them for
# an H200 (jaxlib 0.10.2, ahead of time, without its autotuning; 2026-12-01).
COMPILED = [
    ("qwen2.5-1.5b", "RTX 3060", SMALL, (374, 165)),
    ("qwen2.5-7b", "RTX 4090", SMALL, (819, 151)),
    ("qwen2.5-1.5b", "24GiB", LONGER, (1537, 238)),
    ("qwen2.5-0.5b", "T4", FLOATS, (222, 158)),
]


@pytest.mark.parametrize(("name", "card", "options", "compiled"), COMPILED)
def test_programs_take_what_the_compiler_for_a_gpu_gives_them(name, card, options, compiled):
    taken = counted(name, card, 128, layers=2, **options)
    found = [taken.reading / 2**20, taken.writing / 2**20]
    assert found == pytest.approx(compiled, rel=0.12)


def test_two_layers_tell_of_all():
    few, more = (counted("qwen2.5-1.5b", "RTX 3060", 128, few=n, **SMALL) for n in (None, (3, 4)))
    assert few.peak == pytest.approx(more.peak, rel=0.001)
