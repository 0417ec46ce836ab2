"""Devices that plans are made for, and how fast they compute, copy and update.

A device is a card by name (`cards`), several of them, a size in bytes, or that of this process.
"""

import dataclasses
import re
from dataclasses import dataclass

from springroll.errors import InputError, brief, nearest
from springroll.memory import UNITS, available_bytes, parse_bytes
from springroll.planner.cards import ALIASES, CARDS, CONTEXT, GIB, MIB, Card
from springroll.ranges import Range, check_number

__all__ = ["CARDS", "CONTEXT", "GIB", "MIB", "Card", "Device", "Rates", "device_of"]

MEMORY = Range(at_least=1, below=2**63, refusal="expected memory above zero, such as 24GiB")
MOST_DEVICES = 1024
# Of the dense peak, what the blocks of a decoder reach in bfloat16, everything that is executed
# counted. 450 TFLOP/s of an H200's 989 is what the design assumes; MegaTrain's published 272
# TFLOP/s for a 7B model on an H100, counted at six per parameter and token where its code executes
# ten, are 0.46.
FRACTION = 0.455
UPDATE_BYTES = 26  # of memory traffic per parameter of exact AdamW


@dataclass(frozen=True)
class Device:
    """What a plan is made for.

    name: for people; memory: bytes a program can have; card: whose speed is assumed, None where it
    is measured; local: it is the device of this process, whose compiler is asked;
    unified: its memory is the host's; count: how many of them one host has.
    """

    name: str
    memory: int
    card: Card | None
    local: bool = False
    unified: bool = False
    count: int = 1

    @property
    def platform(self) -> str | None:
        """That programs are counted for; None where this process's compiler is asked, of a CPU."""
        return None if self.local and self.card is None else "gpu"


def device_of(given: str | int | None) -> Device:
    """A card's name, bytes (24GiB, or a number of them), several of either ("8x H200"), or `None`
    and "auto" for the one at hand.

    Of bytes alone the speed is that of the slowest card with at least as many.

    Raises:
        InputError: an unknown name (the nearest is named), a size or a number that is none.
    """
    if given is None or given == "auto":
        return detected()
    several = SEVERAL.fullmatch(given) if isinstance(given, str) else None
    if several is not None:
        one = device_of(several[2])
        count = int(several[1]) if len(several[1]) < 6 else MOST_DEVICES + 1
        if not 1 <= count <= MOST_DEVICES or one.local or one.count > 1:
            raise InputError(
                f"device is {brief(given)}; expected 1 to {MOST_DEVICES} cards, such as '8x H200'"
            )
        if one.unified and count > 1:
            raise InputError(f"{one.name} shares the host's memory; plans are made for one of them")
        name = one.name if count == 1 else f"{count}x {one.name}"
        return dataclasses.replace(one, name=name, count=count)
    if not isinstance(given, str) or re.match(r"\s*[+-]?[\d.][\d.e+-]*\s*[A-Za-z]+\s*$", given):
        size = bytes_of(given, "device")
        return Device(f"{given} of device memory", size, card_with(size))
    card = named_card(given)
    return Device(card.name, card.usable, card, unified=card.unified)


SEVERAL = re.compile(r"\s*([0-9]+)\s*[x\u00d7*]\s*(\S.*)", re.DOTALL)


def bytes_of(given: str | int, name: str) -> int:
    """Memory, or what a link passes in a second, as it is spelt ("24GiB") or as a number of bytes.

    Raises:
        InputError: it is neither, or zero.
    """
    size = parse_bytes(given, name) if isinstance(given, str) else given
    check_number(name, size, int, MEMORY)
    return size


def named_card(name: str) -> Card:
    """The card of that name; spaces, hyphens, capitals and the maker's name do not matter.

    A name with an amount of memory behind it is that card with so much: "M4 Max 64GB".

    Raises:
        InputError: there is none; the nearest is named.
    """
    by_name = {_plain(card.name): card for card in CARDS}
    by_name |= {_plain(alias): by_name[_plain(card)] for alias, card in ALIASES.items()}
    by_name |= {key.removeprefix("rtx"): card for key, card in by_name.items()}
    if (key := _plain(name)) in by_name:
        return by_name[key]
    with_memory = re.fullmatch(r"(.*\S)[\s-]+([0-9.]+ ?[A-Za-z]+)\s*", name, re.DOTALL)
    if with_memory and with_memory[2].lstrip("0123456789. ").upper() in UNITS:
        card, memory = named_card(with_memory[1]), bytes_of(with_memory[2], "device")
        return dataclasses.replace(card, name=f"{card.name} {with_memory[2]}", memory=memory)
    near = nearest(key, by_name)
    hint = f"did you mean {by_name[near].name}?" if near else "give its memory, such as 24GiB"
    raise InputError(f"no card named {brief(name)}; {hint}")


def card_with(size: int) -> Card:
    """The slowest card with that much memory, give or take a context, of those that compute in
    bfloat16; the largest of all if none has as much."""
    known = [card for card in CARDS if not card.unified and card.peak > card.peak32]
    large_enough = [card for card in known if card.memory >= size]
    least = min((card.memory for card in large_enough), default=0)
    comparable = [card for card in large_enough if card.memory <= 1.1 * least]
    if not comparable:
        return max(known, key=lambda card: card.memory)
    return min(comparable, key=lambda card: card.peak)


def detected() -> Device:
    """The first device of this process; of a CPU the memory that the host has left."""
    import jax

    device = jax.devices()[0]
    memory = available_bytes()
    if memory is None:
        raise InputError("this system does not tell how much memory it has; give device, as 24GiB")
    if device.platform == "cpu":
        return Device("this CPU", memory, None, local=True, unified=True)
    card = card_at_hand()
    unified = card is not None and card.unified
    return Device(device.device_kind, memory, card, local=True, unified=unified)


def card_at_hand() -> Card | None:
    """That of the first device of this process; of an unknown one, the slowest with as much memory;
    of a CPU none."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return None
    try:
        return named_card(device.device_kind)
    except InputError:
        return card_with(available_bytes() or 0)


# Words of names that tell no two cards apart.
UNSAID = frozenset(("nvidia", "geforce", "tesla", "amd", "instinct", "radeon", "apple", "gpu"))
UNSAID |= {"sxm", "sxm2", "sxm4", "sxm5", "generation", "workstation", "server", "edition"}


def _plain(name: str) -> str:
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).split()
    return "".join(word for word in words if word not in UNSAID)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What each resource does per second.

    flops: executed FLOP/s of the blocks; head_flops: of the head; to_device, to_host: link bytes/s;
    host_update: parameters/s of AdamW on the host; device_update: of any update on the device.
    between: bytes/s from device to device; None: as `to_device`.
    shared: all of them are the same cores, so that times add up instead of overlapping.
    source: where the figures are from, for people.
    """

    flops: float
    head_flops: float
    to_device: float
    to_host: float
    host_update: float
    device_update: float
    between: float | None = None
    shared: bool = False
    source: str = ""


def assumed_rates(card: Card, link: float | None = None, dtype: str = "bfloat16") -> Rates:
    """The rates of a card; `link` in bytes/s each way instead of its own."""
    peak = card.peak if dtype == "bfloat16" else card.peak32 or card.peak
    return Rates(
        flops=FRACTION * peak,
        head_flops=FRACTION * peak,
        to_device=link or card.link,
        to_host=link or card.link,
        host_update=card.host_update,
        device_update=card.bandwidth / UPDATE_BYTES,
        between=card.between,
        source=f"{FRACTION:.0%} of the {peak / 1e12:.0f} TFLOP/s of {card.name}",
    )
