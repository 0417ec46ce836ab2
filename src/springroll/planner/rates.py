"""How fast a machine computes, copies and updates: assumed of a card, or measured."""

from __future__ import annotations

from dataclasses import dataclass

from springroll.planner.devices import Card

# Of the dense peak, what the blocks of a decoder reach in bfloat16, everything that is executed
# counted. 450 TFLOP/s of an H200's 989 is what the design assumes; MegaTrain's published 272
# TFLOP/s for a 7B model on an H100, counted at six per parameter and token where its code executes
# ten, are 0.46.
FRACTION = 0.455
UPDATE_BYTES = 26  # of memory traffic per parameter of exact AdamW


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What each resource does per second.

    flops: executed FLOP/s of the blocks; head_flops: of the head; to_device, to_host: link bytes/s;
    host_update: parameters/s of AdamW on the host; device_update: of any update on the device.
    shared: all of them are the same cores, so that times add up instead of overlapping.
    source: where the figures are from, for people.
    """

    flops: float
    head_flops: float
    to_device: float
    to_host: float
    host_update: float
    device_update: float
    shared: bool = False
    source: str = ""


def assumed(card: Card, link: float | None = None) -> Rates:
    """The rates of a card; `link` in bytes/s each way instead of its own."""
    return Rates(
        flops=FRACTION * card.peak,
        head_flops=FRACTION * card.peak,
        to_device=link or card.link,
        to_host=link or card.link,
        host_update=card.host_update,
        device_update=card.bandwidth / UPDATE_BYTES,
        source=f"{FRACTION:.0%} of the {card.peak / 1e12:.0f} TFLOP/s of {card.name}",
    )
