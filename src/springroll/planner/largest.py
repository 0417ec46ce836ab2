"""The largest models that a machine can train, by every method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from springroll.errors import InputError
from springroll.models.decoder_config import CONFIGS, DecoderConfig
from springroll.planner.footprint import Job
from springroll.planner.methods import METHODS
from springroll.planner.placement import Budgets, choose
from springroll.planner.planned import Options, Plan, job_of, micro_batches, planned
from springroll.planner.rates import Rates

SMALLEST = 50e6  # parameters: below are toys
SHAPE = "llama-7b"  # whose layers are counted where no model is given
WAYS = ("adamw", "adamw-8bit", "muon-8bit", "galore-8bit", "apollo-mini", "lowgrad", "evolve")
MOST_LAYERS = 1 << 14


@dataclass(frozen=True)
class Way:
    """What a method can do on a machine.

    parameters: of the deepest model with layers of one given shape that fits, 0 if not one does;
    plan: of the model asked about, or of the largest named one; None if it does not fit.
    """

    method: str
    says: str
    parameters: int
    plan: Plan | None

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        plan = None if self.plan is None else self.plan.record()
        return {"method": self.method, "largest_by_layers": self.parameters, "plan": plan}


def alternatives(name: str, config: DecoderConfig, options: Options) -> list[Way]:
    """What every method makes of one model."""
    return [_way(each, config, lambda each: planned(name, config, each)) for each in _ways(options)]


def capacity(options: Options) -> list[Way]:
    """The largest named model by every method, and how far layers like LLaMA-7B's would go."""
    return [_way(each, CONFIGS[SHAPE], largest_named) for each in _ways(options)]


def largest_named(options: Options) -> Plan | None:
    """The named model with the most parameters that fits."""
    for name, config in sorted(CONFIGS.items(), key=lambda item: -item[1].parameters):
        if config.parameters < SMALLEST:
            return None
        found = planned(name, config, options)
        if found is not None:
            return found
    return None


def deepest(job: Job, rates: Rates, budgets: Budgets) -> int:
    """Parameters of the deepest model with layers like the job's that fits; 0 if not one does."""

    def fits(layers: int) -> bool:
        config = dataclasses.replace(job.config, layers=layers)
        longer = dataclasses.replace(job, config=config)  # what a layer keeps stays the same
        return choose(longer, rates, budgets) is not None

    low, high = 0, 1
    while high < MOST_LAYERS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return dataclasses.replace(job.config, layers=low).parameters if low else 0


def _ways(options: Options) -> list[Options]:
    """The options with every method, the one asked for first."""
    bits = "" if options.state_bits == 32 else f"-{options.state_bits}bit"
    asked = options.method + bits
    names = dict.fromkeys((asked, *WAYS))
    return [dataclasses.replace(options, method=name, state_bits=32) for name in names]


def _way(options: Options, shape: DecoderConfig, plan: Any) -> Way:
    says = METHODS[options.method.removesuffix("-8bit").removesuffix("-4bit")]
    try:
        job = job_of(shape, options, micro_batches(options)[-1])
    except InputError:  # a rank above this model's size
        return Way(options.method, says, 0, None)
    parameters = deepest(job, options.rates, options.budgets)
    return Way(options.method, says, parameters, plan(options))
