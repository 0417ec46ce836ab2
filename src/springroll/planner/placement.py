"""What stays on the device and what streams: the placement with the shortest modelled step."""

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from springroll.planner.devices import Rates
from springroll.planner.footprint import (
    Bytes,
    Placement,
    StepSpec,
    device_bytes,
    disk_bytes,
    host_bytes,
    together,
    total,
)
from springroll.planner.step_time import Seconds, step_seconds


class Budgets(NamedTuple):
    """Bytes that may be used on each device, on the host and on a disk; `together`: of devices and
    host at once, where they are the same memory."""

    device: int
    host: int
    together: int | None = None
    disk: int = 0


class Choice(NamedTuple):
    """A placement and its modelled step."""

    place: Placement
    seconds: Seconds


def fits(spec: StepSpec, place: Placement, budgets: Budgets) -> bool:
    """Whether all tiers hold what the placement puts there."""
    if total(device_bytes(spec, place)) > budgets.device:
        return False
    return _lacking(spec, place, budgets) <= 0 and total(disk_bytes(spec, place)) <= budgets.disk


def choose(spec: StepSpec, rates: Rates, budgets: Budgets) -> Choice | None:
    """The fastest placement that fits, of equals the one that moves least; None if none does."""
    choices = [Choice(x, step_seconds(spec, x, rates)) for x in placements(spec, budgets)]
    if not choices:
        return None
    moved = lambda choice: choice.seconds.to_device + choice.seconds.to_host
    return min(choices, key=lambda choice: (choice.seconds.step, moved(choice)))


def placements(spec: StepSpec, budgets: Budgets) -> Iterator[Placement]:
    """What fits: every mode with every number of layers that stay and the most saved inputs."""
    return (place for place in _placements(spec, budgets) if fits(spec, place, budgets))


def _placements(spec: StepSpec, budgets: Budgets) -> Iterator[Placement]:
    layers = spec.config.layers
    if "lowgrad" not in spec.method.updates and "evolve" not in spec.method.updates:
        resident = Placement("resident", layers, 0)
        yield dataclasses.replace(resident, inputs=_inputs(spec, resident, budgets))
    for mode in spec.method.updates:
        for stay in range(layers + 1):
            place = Placement(mode, stay, 0)
            if total(device_bytes(spec, place)) > budgets.device:
                break  # nor do more layers fit
            if stay == layers and mode in ("host", "device"):
                continue  # that is resident
            place = dataclasses.replace(place, inputs=_inputs(spec, place, budgets))
            yield replaced(place, least_disk(spec, place, budgets))


def least_disk(spec: StepSpec, place: Placement, budgets: Budgets) -> int:
    """How many of the layers that do not stay have to live on a disk, if there is one."""
    if not budgets.disk or not spec.method.trains or _lacking(spec, place, budgets) <= 0:
        return 0
    counts = range(1, spec.config.layers - place.layers + 1)
    suffices = lambda disk: _lacking(spec, replaced(place, disk), budgets) <= 0
    return min(len(counts), 1 + bisect.bisect_left(counts, True, key=suffices))


def _lacking(spec: StepSpec, place: Placement, budgets: Budgets) -> int:
    """Bytes of host memory that the placement needs and the budgets have not."""
    host = total(host_bytes(spec, place))
    both = together(spec, place) - budgets.together if budgets.together is not None else 0
    return max(host - budgets.host, both)


def _inputs(spec: StepSpec, place: Placement, budgets: Budgets) -> int:
    """Layers whose saved inputs fit on the device beside all else."""
    free = budgets.device - total(device_bytes(spec, place))
    if not spec.method.trains:
        return int(free >= 2 * spec.layer_input)
    return max(0, min(spec.config.layers, free // max(1, spec.layer_input)))


def least_device(spec: StepSpec) -> int:
    """Bytes of device memory without which no step fits: one window of layers, nothing stays."""
    return min(total(device_bytes(spec, place)) for place in _smallest(spec))


def least_host(spec: StepSpec, budgets: Budgets) -> int:
    """Bytes of host memory that a step needs beside that device."""
    return min((total(host_bytes(spec, place)) for place in _with_room(spec, budgets)), default=0)


def _with_room(spec: StepSpec, budgets: Budgets) -> list[Placement]:
    """Placements on that device with a host that holds anything, and on the disk, if there is one,
    all that it can take."""
    fitting = list(placements(spec, budgets._replace(host=1 << 62, together=None, disk=0)))
    if not budgets.disk or not spec.method.trains:
        return fitting
    return [replaced(place, spec.config.layers - place.layers) for place in fitting]


class Shortage(NamedTuple):
    """The memory that the smallest step lacks: where, the bytes it needs and has, and the largest
    part of them."""

    tier: str
    needed: int
    given: int
    part: str
    size: int

    @property
    def missing(self) -> int:
        """Bytes."""
        return self.needed - self.given


def shortages(spec: StepSpec, budgets: Budgets) -> list[Shortage]:
    """What is missing for a step that does not fit: on the device, on the host, of both, or
    on the disk."""
    least = lambda sizes: min(map(sizes, _smallest(spec)), key=total)
    device = lambda place: device_bytes(spec, place)
    host = lambda place: host_bytes(spec, place)
    both = lambda place: Counter(device(place)) + Counter(host(place))
    held = min(map(host, _with_room(spec, budgets)), key=total, default=least(host))
    at_once = "a layer at a time" if spec.method.updates else "the whole model"
    tiers: list[tuple[str, Bytes, int]] = [
        (f"device memory for {at_once}", least(device), budgets.device)
    ]
    if budgets.together is not None:
        tiers.append(("memory for device and host together", least(both), budgets.together))
    else:
        tiers.append(("host memory", held, budgets.host))
    enough = placements(spec, budgets._replace(disk=1 << 62))
    stored = min((disk_bytes(spec, place) for place in enough), key=total, default={})
    tiers.append(("disk", stored, budgets.disk))
    largest = lambda sizes: max(sizes, key=lambda kind: sizes[kind])
    return [
        Shortage(tier, total(sizes), given, largest(sizes), max(sizes.values()))
        for tier, sizes, given in tiers
        if total(sizes) > given
    ]


def _smallest(spec: StepSpec) -> list[Placement]:
    """One window of layers, and nothing that could be elsewhere stays."""
    streamed = [Placement(mode, 0, 0) for mode in spec.method.updates]
    return streamed or [Placement("resident", spec.config.layers, 0)]


def replaced(place: Placement, disk: int) -> Placement:
    """The same with so many layers on a disk."""
    return dataclasses.replace(place, disk=disk)
