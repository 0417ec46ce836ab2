"""What stays on the device and what streams: the placement with the shortest modelled step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from springroll.planner.footprint import Job, Placement, device_bytes, host_bytes, total
from springroll.planner.rates import Rates
from springroll.planner.step_time import Seconds, step_seconds


class Budgets(NamedTuple):
    """Bytes that may be used; `together`: of both at once, where they are the same memory."""

    device: int
    host: int
    together: int | None = None


class Choice(NamedTuple):
    """A placement and its modelled step."""

    place: Placement
    seconds: Seconds


def fits(job: Job, place: Placement, budgets: Budgets) -> bool:
    """Whether both tiers hold what the placement puts there."""
    device, host = total(device_bytes(job, place)), total(host_bytes(job, place))
    if device > budgets.device or host > budgets.host:
        return False
    return budgets.together is None or device + host <= budgets.together


def choose(job: Job, rates: Rates, budgets: Budgets) -> Choice | None:
    """The fastest placement that fits, of equals the one that moves least; None if none does."""
    found = [
        Choice(place, step_seconds(job, place, rates))
        for place in placements(job, budgets)
        if fits(job, place, budgets)
    ]
    if not found:
        return None
    moved = lambda choice: choice.seconds.to_device + choice.seconds.to_host
    return min(found, key=lambda choice: (choice.seconds.step, moved(choice)))


def placements(job: Job, budgets: Budgets) -> Iterator[Placement]:
    """Every mode with every number of layers that stay, each with as many saved inputs as fit."""
    layers = job.config.layers
    if "lowgrad" not in job.recipe.updates and "evolve" not in job.recipe.updates:
        yield Placement("resident", layers, _inputs(job, Placement("resident", layers, 0), budgets))
    for mode in job.recipe.updates:
        for stay in range(layers + 1):
            if stay == layers and mode in ("host", "device"):
                continue  # that is resident
            yield Placement(mode, stay, _inputs(job, Placement(mode, stay, 0), budgets))


def _inputs(job: Job, place: Placement, budgets: Budgets) -> int:
    """Layers whose saved inputs fit on the device beside all else."""
    free = budgets.device - total(device_bytes(job, place))
    if not job.recipe.trains:
        return int(free >= 2 * job.layer_input)
    return max(0, min(job.config.layers, free // max(1, job.layer_input)))


def least_device(job: Job) -> int:
    """Bytes of device memory without which no step fits: one window of layers, nothing stays."""
    return min(total(device_bytes(job, Placement(mode, 0, 0))) for mode in job.recipe.updates)


def least_host(job: Job, budgets: Budgets) -> int:
    """Bytes of host memory that a step needs beside that device."""
    roomy = Budgets(budgets.device, 1 << 62)
    there = [place for place in placements(job, roomy) if fits(job, place, roomy)]
    return min((total(host_bytes(job, place)) for place in there), default=0)
