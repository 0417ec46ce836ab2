"""The largest models that a machine can train, by every method."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from springroll.errors import InputError
from springroll.memory import spelt
from springroll.models.config_checks import MOST_STACKED
from springroll.models.decoder_config import CONFIGS, DecoderConfig
from springroll.planner.footprint import StepSpec
from springroll.planner.methods import METHODS
from springroll.planner.placement import Budgets, placements
from springroll.planner.plan_result import Plan, billions
from springroll.planner.search import Options, fastest_plan, micro_batches, step_spec

SMALLEST = 50e6  # parameters: below are toys
SHAPE = "llama-7b"  # whose layers are counted where no model is given
COMPARED = ("adamw", "adamw-8bit", "muon-8bit", "galore-8bit", "apollo-mini", "lowgrad", "evolve")


@dataclass(frozen=True)
class MethodPlan:
    """The largest models that one method can train on a machine.

    parameters: of the deepest model with layers of one given shape that fits, 0 if not one does;
    plan: of the model asked about, or of the largest named one; None if it does not fit.
    """

    method: str
    description: str
    parameters: int
    plan: Plan | None

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        plan = None if self.plan is None else self.plan.record()
        return {"method": self.method, "largest_by_layers": self.parameters, "plan": plan}


def alternatives(name: str, config: DecoderConfig, options: Options) -> list[MethodPlan]:
    """Every method's fastest plan for one model."""
    search = lambda other: fastest_plan(name, config, other)
    return [_method_plan(other, config, search) for other in _each_method(options)]


def capacity(options: Options) -> list[MethodPlan]:
    """The largest named model by every method, and how far layers like LLaMA-7B's would go."""
    return [_method_plan(other, CONFIGS[SHAPE], largest_named) for other in _each_method(options)]


def largest_named(options: Options) -> Plan | None:
    """The named model with the most parameters that fits."""
    for name, config in sorted(CONFIGS.items(), key=lambda item: -item[1].parameters):
        if config.parameters < SMALLEST:
            return None
        plan = fastest_plan(name, config, options)
        if plan is not None:
            return plan
    return None


def deepest(spec: StepSpec, budgets: Budgets) -> int:
    """Parameters of the deepest model with layers like the spec's that fits; 0 if not one does."""

    def fits(layers: int) -> bool:
        config = dataclasses.replace(spec.config, layers=layers)
        longer = dataclasses.replace(spec, config=config)  # what a layer keeps stays the same
        return any(True for _ in placements(longer, budgets))

    low, high = 0, 1
    while high <= MOST_STACKED and fits(high):
        low, high = high, 2 * high
    high = min(high, MOST_STACKED + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return dataclasses.replace(spec.config, layers=low).parameters if low else 0


def _each_method(options: Options) -> list[Options]:
    """The options with every method, the one asked for first."""
    bits = "" if options.state_bits == 32 else f"-{options.state_bits}bit"
    asked = options.method + bits
    names = dict.fromkeys((asked, *COMPARED))
    return [options.by(name) for name in names]


def _method_plan(
    options: Options, shape: DecoderConfig, plan: Callable[[Options], Plan | None]
) -> MethodPlan:
    description = METHODS[options.method.removesuffix("-8bit").removesuffix("-4bit")]
    try:
        found = plan(options)
        rows = micro_batches(options)[-1] if found is None else found.spec.rows
        spec = step_spec(shape, options, rows)
    except InputError:  # a rank above this model's size
        return MethodPlan(options.method, description, 0, None)
    return MethodPlan(options.method, description, deepest(spec, options.budgets), found)


def alternatives_table(plans: Sequence[MethodPlan]) -> Table:
    """One model by every method, and the deepest model with its layers."""
    table = _plans_table("other methods", "what streams", "device", "host")
    for each in plans:
        plan = each.plan
        shown = ("does not fit", "", "", "") if plan is None else _shown(plan)
        table.add_row(each.method, *shown, billions(each.parameters))
    return table


def capacity_table(plans: Sequence[MethodPlan]) -> Table:
    """The largest model by every method."""
    table = _plans_table("what this machine can train", "largest named model", "device", "host")
    for each in plans:
        plan = each.plan
        shown = ("none", "", "", "")
        if plan is not None:
            model = f"{plan.model}{'' if plan.streams else ' (resident)'}"
            shown = (model, *_shown(plan)[1:])
        table.add_row(each.method, *shown, billions(each.parameters))
    return table


def _plans_table(name: str, second: str, *tiers: str) -> Table:
    last = ("tokens/s", "largest by layers")
    table = Table("method", second, *tiers, *last, title=name, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _shown(plan: Plan) -> tuple[str, str, str, str]:
    place, layers = plan.place, plan.spec.config.layers
    streams = f"{layers - place.layers} of {layers} layers" if plan.streams else "nothing"
    if plan.streams and place.mode in ("host", "device"):
        streams += f", updated on the {place.mode}"
    speed = f"{plan.tokens_per_second:,.0f}"
    return streams, spelt(plan.device_peak), spelt(plan.host_peak), speed
