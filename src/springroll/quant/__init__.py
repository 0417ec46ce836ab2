"""Fewer bits per number: how values are rounded and stored."""

from springroll.quant.int8_weights import Int8, dequantize_weights, quantize_weights
from springroll.quant.quantize_state import dequantize_state, quantize_state, requantize_state
from springroll.quant.registers import fastest_registers
from springroll.quant.root_companding import Quantized
from springroll.quant.split_master import high_half, with_split_master
from springroll.quant.stochastic_rounding import round_stochastically, with_stochastic_rounding

__all__ = [
    "Int8",
    "Quantized",
    "dequantize_state",
    "dequantize_weights",
    "fastest_registers",
    "high_half",
    "quantize_state",
    "quantize_weights",
    "requantize_state",
    "round_stochastically",
    "with_split_master",
    "with_stochastic_rounding",
]
