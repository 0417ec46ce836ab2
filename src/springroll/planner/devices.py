"""Devices that plans are made for, and how fast they compute, copy and update.

A device is a card by name, a size in bytes, or the one of this process.

Peaks are those of the makers' data sheets, dense, bfloat16 with float32 accumulation: what XLA asks
for. GeForce cards accumulate in float32 at half the rate that is usually quoted, and sheets that
quote sparse figures are halved. Links are what copies of page-locked memory reach in practice: 12,
25 and 50 GB/s each way over 16 lanes of PCIe 3, 4 and 5.
"""

import re
from dataclasses import dataclass

from springroll.errors import InputError, nearest
from springroll.memory import available_bytes, parse_bytes
from springroll.ranges import Range, check_number

MEMORY = Range(at_least=1, below=2**63, refusal="expected memory above zero, such as 24GiB")
GIB = 1 << 30
MIB = 1 << 20
CONTEXT = 700 * MIB  # of a card's memory: what the driver, the context and the libraries take

PCIE4, PCIE5 = 25e9, 50e9
C2C = 400e9  # NVLink-C2C: 450 GB/s each way on paper
# Of the dense peak, what the blocks of a decoder reach in bfloat16, everything that is executed
# counted. 450 TFLOP/s of an H200's 989 is what the design assumes; MegaTrain's published 272
# TFLOP/s for a 7B model on an H100, counted at six per parameter and token where its code executes
# ten, are 0.46.
FRACTION = 0.455
UPDATE_BYTES = 26  # of memory traffic per parameter of exact AdamW
# AdamW on the host takes 26 bytes of DRAM traffic per parameter and is bound by it.
# 2 channels of DDR4 or 5, 8 to 12 of DDR5, LPDDR5X of a Grace.
DESKTOP, SERVER, GRACE = 1.5e9, 3.5e9, 12e9  # parameters per second


@dataclass(frozen=True)
class Card:
    """An accelerator, and the machine it usually sits in.

    memory: bytes; peak: FLOP/s; bandwidth: of its memory, bytes/s; link: bytes/s each way;
    host_update: parameters per second of AdamW on the host; unified: its memory is the host's.
    """

    name: str
    memory: int
    peak: float
    bandwidth: float
    link: float = PCIE4
    host_update: float = DESKTOP
    unified: bool = False

    @property
    def usable(self) -> int:
        """Bytes that are left for a program."""
        return self.memory - CONTEXT


def _card(
    name: str,
    gib: float,
    teraflops: float,
    gigabytes: float,
    link: float = PCIE4,
    host_update: float = DESKTOP,
    unified: bool = False,
) -> Card:
    memory, peak, bandwidth = int(gib * GIB), teraflops * 1e12, gigabytes * 1e9
    return Card(name, memory, peak, bandwidth, link, host_update, unified)


CARDS: tuple[Card, ...] = (
    # NVIDIA Ampere GA102 whitepaper, appendix A (3060: GA106 data sheet).
    _card("RTX 3060", 12, 25.6, 360),
    _card("RTX 3080", 10, 59.5, 760),
    _card("RTX 3090", 24, 71, 936),
    _card("A6000", 48, 154.8, 768, PCIE4, SERVER),
    # NVIDIA Ada whitepaper, appendix A; L4 and L40S data sheets, halved for sparsity.
    _card("RTX 4060 Ti 16GB", 16, 44.1, 288, PCIE4 / 2),  # 8 lanes
    _card("RTX 4070", 12, 58.3, 504),
    _card("RTX 4080", 16, 97.5, 717),
    _card("RTX 4090", 24, 165.2, 1008),
    _card("RTX 6000 Ada", 48, 364, 960, PCIE4, SERVER),
    _card("L4", 24, 121, 300, PCIE4, SERVER),
    _card("L40S", 48, 362, 864, PCIE4, SERVER),
    # NVIDIA RTX Blackwell whitepaper, appendix A.
    _card("RTX 5080", 16, 112.6, 960, PCIE5),
    _card("RTX 5090", 32, 209.5, 1792, PCIE5),
    # Data sheets of A100, H100 SXM, H200 SXM, B200 (HGX), GH200, halved where sparse.
    _card("A100 40GB", 40, 312, 1555, PCIE4, SERVER),
    _card("A100 80GB", 80, 312, 2039, PCIE4, SERVER),
    _card("H100", 79.6, 989, 3350, PCIE5, SERVER),
    _card("H200", 140.4, 989, 4800, PCIE5, SERVER),
    _card("B200", 179, 2250, 8000, PCIE5, SERVER),
    _card("GH200", 95.6, 989, 4000, C2C, GRACE),
    # DGX Spark: 1 PFLOP of sparse FP4 on paper, an eighth of which is dense bfloat16.
    _card("GB10", 119.7, 125, 273, 100e9, 5e9, True),
    # AMD data sheet.
    _card("MI300X", 192, 1307, 5300, PCIE5, SERVER),
)
ALIASES = {"DGX Spark": "GB10", "RTX A6000": "A6000", "A100": "A100 80GB", "H100 SXM": "H100"}


@dataclass(frozen=True)
class Device:
    """What a plan is made for.

    name: for people; memory: bytes a program can have; card: whose speed is assumed, None where it
    is measured; local: it is the device of this process, whose compiler is asked;
    unified: its memory is the host's.
    """

    name: str
    memory: int
    card: Card | None
    local: bool = False
    unified: bool = False


def device_of(given: str | int | None) -> Device:
    """A card's name, bytes (24GiB, or a number of them), or `None` and "auto" for the one at hand.

    Of bytes alone the speed is that of the slowest card with at least as many.

    Raises:
        InputError: an unknown name (the nearest is named), a size that is none.
    """
    if given is None or given == "auto":
        return detected()
    if not isinstance(given, str) or re.match(r"\s*[+-]?[\d.][\d.e+-]*\s*[A-Za-z]+\s*$", given):
        size = bytes_of(given, "device")
        return Device(f"{given} of device memory", size, card_with(size))
    card = named_card(given)
    return Device(card.name, card.usable, card, unified=card.unified)


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

    Raises:
        InputError: there is none; the nearest is named.
    """
    by_name = {_plain(card.name): card for card in CARDS}
    by_name |= {_plain(alias): by_name[_plain(card)] for alias, card in ALIASES.items()}
    by_name |= {key.removeprefix("rtx"): card for key, card in by_name.items()}
    if (key := _plain(name)) in by_name:
        return by_name[key]
    near = nearest(key, by_name)
    hint = f"did you mean {by_name[near].name}?" if near else "give its memory, such as 24GiB"
    raise InputError(f"no card named {name!r}; {hint}")


def card_with(size: int) -> Card:
    """The slowest card with that much memory, give or take a context; the largest of all if none
    has as much."""
    large_enough = [card for card in CARDS if card.memory >= size and not card.unified]
    least = min((card.memory for card in large_enough), default=0)
    comparable = [card for card in large_enough if card.memory <= 1.1 * least]
    if not comparable:
        return max(CARDS, key=lambda card: card.memory)
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
    try:
        card: Card | None = named_card(device.device_kind)
    except InputError:
        card = card_with(memory)
    return Device(device.device_kind, memory, card, local=True)


def _plain(name: str) -> str:
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).split()
    return "".join(word for word in words if word not in ("nvidia", "geforce", "amd", "instinct"))


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


def assumed_rates(card: Card, link: float | None = None) -> Rates:
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
