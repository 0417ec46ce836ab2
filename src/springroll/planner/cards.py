"""Accelerators by name: memory, peaks, bandwidth and link, each with the sheet that it is from.

Peaks are dense, of products summed in float32, which is what XLA asks for: of bfloat16, and of
float32 as XLA computes it by default, in TF32 where a card has that. Cards without bfloat16 compute
it in float32. GeForce cards sum in float32 at half the rate that is usually quoted, and sheets that
quote sparse figures are halved. A figure marked `~` is no maker's: it is derived from clock and
units, or reported by others.

Links are what copies of page-locked memory reach in practice, each way: 12, 25 and 50 GB/s over 16
lanes of PCIe 3, 4 and 5.
"""

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20
CONTEXT = 700 * MIB  # of a card's memory: what the driver, the context and the libraries take
SHARE = 0.75  # of a Mac's memory: what its graphics processor may take

PCIE3, PCIE4, PCIE5 = 12e9, 25e9, 50e9
NVLINK3, NVLINK4, NVLINK5 = 240e9, 360e9, 720e9  # four fifths of 300, 450 and 900 GB/s on paper
C2C = 400e9  # NVLink-C2C: 450 GB/s each way on paper
# AdamW on the host takes 26 bytes of DRAM traffic per parameter and is bound by it.
# 2 channels of DDR4 or 5, 8 to 12 of DDR5, LPDDR5X of a Grace.
DESKTOP, SERVER, GRACE = 1.5e9, 3.5e9, 12e9  # parameters per second

NVIDIA = "https://www.nvidia.com/en-us"
IMAGES = "https://images.nvidia.com/aem-dam/Solutions/geforce"
SHEETS = {
    "Volta": f"{NVIDIA}/data-center/v100/",
    "T4": f"{NVIDIA}/data-center/tesla-t4/",
    "Turing": "NVIDIA Turing GPU architecture, WP-09183-001, appendix A",
    "GA102": "https://www.nvidia.com/content/PDF/"
    "nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf",
    "A10": f"{NVIDIA}/data-center/products/a10-gpu/",
    "A30": f"{NVIDIA}/data-center/products/a30-gpu/",
    "A40": f"{NVIDIA}/data-center/a40/",
    "A100": f"{NVIDIA}/data-center/a100/",
    "Ada": f"{IMAGES}/ada/nvidia-ada-gpu-architecture.pdf",
    "L4": f"{NVIDIA}/data-center/l4/",
    "L40": f"{NVIDIA}/data-center/l40/",
    "L40S": f"{NVIDIA}/data-center/l40s/",
    "RTX Blackwell": f"{IMAGES}/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
    "RTX PRO": f"{NVIDIA}/products/workstations/professional-desktop-gpus/rtx-pro-6000/",
    "H100": f"{NVIDIA}/data-center/h100/",
    "H200": f"{NVIDIA}/data-center/h200/",
    "GH200": f"{NVIDIA}/data-center/grace-hopper-superchip/",
    "HGX": f"{NVIDIA}/data-center/hgx/",
    "GB200": f"{NVIDIA}/data-center/gb200-nvl72/",
    "Spark": f"{NVIDIA}/products/workstations/dgx-spark/",
    "MI210": "https://www.amd.com/en/products/accelerators/instinct/mi200/mi210.html",
    "MI300X": "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
    "MI325X": "https://www.amd.com/en/products/accelerators/instinct/mi300/mi325x.html",
    "MI355X": "https://www.amd.com/en/products/accelerators/instinct/mi350/mi355x.html",
    "RDNA3": "https://www.amd.com/en/products/graphics/desktops/radeon/7000-series/"
    "amd-radeon-rx-7900xtx.html",
    "M1": "https://www.apple.com/newsroom/2021/10/introducing-m1-pro-and-m1-max/",
    "M2": "https://www.apple.com/newsroom/2023/06/apple-introduces-m2-ultra/",
    "M3": "https://www.apple.com/newsroom/2025/03/apple-reveals-m3-ultra/",
    "M4": "https://www.apple.com/newsroom/2024/10/apple-introduces-m4-pro-and-m4-max/",
}


@dataclass(frozen=True)
class Card:
    """An accelerator, and the machine it usually sits in.

    memory: bytes; peak: FLOP/s in bfloat16; bandwidth: of its memory, bytes/s; link: bytes/s each
    way; host_update: parameters per second of AdamW on the host; unified: its memory is the host's;
    peak32: FLOP/s in float32 as XLA computes it; source: the sheet; estimated: the fields that are
    on no maker's sheet; share: of the memory that a program may have; between: bytes/s each way
    from card to card, None: as the link.
    """

    name: str
    memory: int
    peak: float
    bandwidth: float
    link: float = PCIE4
    host_update: float = DESKTOP
    unified: bool = False
    peak32: float = 0.0
    source: str = ""
    estimated: tuple[str, ...] = ()
    share: float = 1.0
    between: float | None = None

    @property
    def usable(self) -> int:
        """Bytes that are left for a program."""
        return max(1, min(int(self.share * self.memory), self.memory - CONTEXT))


def _cards(
    sheet: str,
    *rows: tuple[str, float, str, str, float],
    link: float = PCIE4,
    host: float = DESKTOP,
    unified: bool = False,
    share: float = 1.0,
    between: float | None = None,
) -> tuple[Card, ...]:
    """Cards of one sheet: name, GiB, TFLOP/s in bfloat16 and float32, GB/s of the memory."""

    def card(name: str, gib: float, short: str, wide: str, gigabytes: float) -> Card:
        peaks = {"peak": short, "peak32": wide}
        estimated = tuple(field for field, text in peaks.items() if text.startswith("~"))
        number = lambda text: float(text.lstrip("~")) * 1e12
        return Card(
            name,
            int(gib * GIB),
            number(short),
            gigabytes * 1e9,
            link or gigabytes * 1e9 / 4,
            host,
            unified,
            number(wide),
            SHEETS[sheet],
            estimated,
            share,
            between,
        )

    return tuple(card(*row) for row in rows)


CARDS: tuple[Card, ...] = (
    *_cards(
        "Volta",
        ("V100 16GB", 16, "15.7", "15.7", 900),
        ("V100 32GB", 32, "15.7", "15.7", 900),
        link=PCIE3,
        host=SERVER,
    ),
    *_cards("T4", ("T4", 15, "8.1", "8.1", 320), link=PCIE3, host=SERVER),
    *_cards("Turing", ("RTX 2080 Ti", 11, "13.4", "13.4", 616), link=PCIE3),
    *_cards(
        "GA102",
        ("RTX 3060", 12, "~25.6", "~12.8", 360),
        ("RTX 3070", 8, "40.6", "20.3", 448),
        ("RTX 3080", 10, "59.5", "29.8", 760),
        ("RTX 3080 Ti", 12, "~68.2", "~34.1", 912),
        ("RTX 3090", 24, "71", "35.6", 936),
        ("RTX 3090 Ti", 24, "~80", "~40", 1008),
    ),
    *_cards("GA102", ("A6000", 48, "154.8", "77.4", 768), host=SERVER),
    *_cards("A10", ("A10", 24, "125", "62.5", 600), host=SERVER),
    *_cards("A30", ("A30", 24, "165", "82", 933), host=SERVER),
    *_cards("A40", ("A40", 48, "149.7", "74.8", 696), host=SERVER),
    *_cards(
        "A100",
        ("A100 40GB", 40, "312", "156", 1555),
        ("A100 80GB", 80, "312", "156", 2039),
        host=SERVER,
        between=NVLINK3,
    ),
    *_cards("Ada", ("RTX 4060 Ti 16GB", 16, "44.1", "22.1", 288), link=PCIE4 / 2),  # 8 lanes
    *_cards(
        "Ada",
        ("RTX 4070", 12, "58.3", "29.1", 504),
        ("RTX 4070 Ti Super", 16, "~88.2", "~44.1", 672),
        ("RTX 4080", 16, "97.5", "48.7", 717),
        ("RTX 4080 Super", 16, "~104", "~52.2", 736),
        ("RTX 4090", 24, "165.2", "82.6", 1008),
        ("RTX 4090 Laptop", 16, "~66", "~33", 576),
    ),
    *_cards("Ada", ("RTX 6000 Ada", 48, "364", "182", 960), host=SERVER),
    *_cards("L4", ("L4", 24, "121", "60", 300), host=SERVER),
    *_cards("L40", ("L40", 48, "181", "90.5", 864), host=SERVER),
    *_cards("L40S", ("L40S", 48, "362", "183", 864), host=SERVER),
    *_cards(
        "RTX Blackwell",
        ("RTX 5070", 12, "61.7", "30.9", 672),
        ("RTX 5070 Ti", 16, "87.9", "43.9", 896),
        ("RTX 5080", 16, "112.6", "56.3", 960),
        ("RTX 5090", 32, "209.5", "104.8", 1792),
        link=PCIE5,
    ),
    *_cards("RTX PRO", ("RTX PRO 6000", 95.6, "~504", "~252", 1792), link=PCIE5, host=SERVER),
    *_cards(
        "H100",
        ("H100", 79.6, "989", "494", 3350),
        link=PCIE5,
        host=SERVER,
        between=NVLINK4,
    ),
    *_cards(
        "H100",
        ("H100 PCIe", 79.6, "756", "378", 2000),
        ("H100 NVL", 93.6, "835", "417", 3900),
        link=PCIE5,
        host=SERVER,
    ),
    *_cards(
        "H200",
        ("H200", 140.4, "989", "494", 4800),
        link=PCIE5,
        host=SERVER,
        between=NVLINK4,
    ),
    *_cards(
        "HGX",
        ("B200", 179, "2250", "1125", 8000),
        ("B300", 268, "2250", "1125", 8000),
        link=PCIE5,
        host=SERVER,
        between=NVLINK5,
    ),
    *_cards(
        "GH200",
        ("GH200", 95.6, "989", "494", 4000),
        ("GH200 144GB", 141, "989", "494", 4900),
        link=C2C,
        host=GRACE,
    ),
    *_cards("GB200", ("GB200", 184, "2500", "1250", 8000), link=C2C, host=GRACE),
    # 1 PFLOP of sparse FP4 on paper, an eighth of which is dense bfloat16.
    *_cards("Spark", ("GB10", 119.7, "~125", "~62", 273), link=100e9, host=5e9, unified=True),
    *_cards("MI210", ("MI210", 64, "181", "45.3", 1638), host=SERVER),
    *_cards("MI300X", ("MI300X", 192, "1307", "163.4", 5300), link=PCIE5, host=SERVER),
    *_cards("MI325X", ("MI325X", 256, "1307", "163.4", 6000), link=PCIE5, host=SERVER),
    *_cards("MI355X", ("MI355X", 288, "2500", "157.3", 8000), link=PCIE5, host=SERVER),
    *_cards("RDNA3", ("RX 7900 XTX", 24, "~123", "~61.4", 960)),
    # Largest memory of each; give less as "M4 Max 64GB". Apple quotes no FLOP/s. Copies stay in
    # one memory: a quarter of its bandwidth each way.
    *_cards(
        "M1", ("M1 Max", 64, "~10.4", "~10.4", 400), link=0, host=3e9, unified=True, share=SHARE
    ),
    *_cards(
        "M2", ("M2 Ultra", 192, "~27.2", "~27.2", 800), link=0, host=6e9, unified=True, share=SHARE
    ),
    *_cards(
        "M3", ("M3 Ultra", 512, "~28.4", "~28.4", 819), link=0, host=6e9, unified=True, share=SHARE
    ),
    *_cards(
        "M4",
        ("M4 Pro", 64, "~9.2", "~9.2", 273),
        ("M4 Max", 128, "~18.4", "~18.4", 546),
        link=0,
        host=4e9,
        unified=True,
        share=SHARE,
    ),
)
ALIASES = {
    "DGX Spark": "GB10",
    "RTX A6000": "A6000",
    "A100": "A100 80GB",
    "H100 SXM": "H100",
    "H100 80GB HBM3": "H100",
    "V100": "V100 32GB",
    "Tesla T4": "T4",
    "RTX 4060 Ti": "RTX 4060 Ti 16GB",
    "RTX PRO 6000 Blackwell": "RTX PRO 6000",
    "GH200 96GB": "GH200",
    "GH200 480GB": "GH200",  # of the host's
}
