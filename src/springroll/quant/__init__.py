"""Fewer bits per number: how values are rounded and kept."""

from springroll.quant.quantize_state import quantize_state
from springroll.quant.split_master import high_half, with_split_master
from springroll.quant.stochastic_rounding import with_stochastic_rounding

__all__ = [
    "high_half",
    "quantize_state",
    "with_split_master",
    "with_stochastic_rounding",
]
