"""What stays on the device and what streams: the placement with the shortest modelled step."""

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
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
    """Layers whose saved inputs fit on the device beside all else; all, where nothing streams."""
    if not spec.method.updates:
        return spec.config.layers
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
    """What is missing for a step that does not fit: on the device; on the host of such a device; of
    both, where they are one memory; on the disk, if there is one. All of it together suffices."""
    found: list[Shortage] = []

    def held(tier: str, choices: Iterable[Bytes], given: int) -> int:
        """The budget with which the smallest of these fits."""
        sizes = min(choices, key=total)
        needed, part = total(sizes), max(sizes, key=lambda kind: sizes[kind])
        if needed > given:
            found.append(Shortage(tier, needed, given, part, sizes[part]))
        return max(needed, given)

    apart = budgets.together is None or budgets.host < budgets.together
    at_once = "a layer at a time" if spec.method.updates else "the whole model"
    smallest = (device_bytes(spec, place) for place in _smallest(spec))
    least = held(f"device memory for {at_once}", smallest, budgets.device)
    budgets = budgets._replace(device=least, host=budgets.host if apart else 1 << 62)
    roomy = _with_room(spec, budgets)
    host = held("host memory", (host_bytes(spec, place) for place in roomy), budgets.host)
    budgets = budgets._replace(host=host)
    if budgets.together is not None:
        each = lambda place: device_bytes(spec, place).items()
        devices = lambda place: Counter({kind: spec.devices * n for kind, n in each(place)})
        both = (
            devices(place) + Counter(host_bytes(spec, place))
            for place in roomy
            if total(host_bytes(spec, place)) <= host
        )
        tier = "memory for device and host together"
        budgets = budgets._replace(together=held(tier, both, budgets.together))
    if budgets.disk:
        enough = placements(spec, budgets._replace(disk=1 << 62))
        held("disk", (disk_bytes(spec, place) for place in enough), budgets.disk)
    return found


def _smallest(spec: StepSpec) -> list[Placement]:
    """One window of layers, and nothing that could be elsewhere stays."""
    streamed = [Placement(mode, 0, 0) for mode in spec.method.updates]
    return streamed or [Placement("resident", spec.config.layers, spec.config.layers)]


def replaced(place: Placement, disk: int) -> Placement:
    """The same with so many layers on a disk."""
    return dataclasses.replace(place, disk=disk)
