"""The primitive rules: one dict, from a primitive's name to what it does to a Factored operand.

A rule is `rule(frame, eqn, *operands) -> list of outputs`, or None for "no thin form here": the
operands are then densified and reported. docs/factored.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable

from springroll.factored import consume, control, structure

RULES: dict[str, Callable] = {
    # Factored -> Factored: the weight changes shape, type or scale and stays thin.
    "add": structure.add,
    "add_any": structure.add,
    "broadcast_in_dim": structure.broadcast_in_dim,
    "convert_element_type": structure.convert_element_type,
    "copy": structure.identity,
    "copy_p": structure.identity,
    "device_put": structure.identity,
    "div": structure.div,
    "dynamic_slice": structure.dynamic_slice,
    "mul": structure.mul,
    "name": structure.identity,
    "neg": structure.neg,
    "optimization_barrier": structure.identity,
    "pcast": structure.each_part,
    "pvary": structure.each_part,
    "reshape": structure.reshape,
    "sharding_constraint": structure.base_only,
    "slice": structure.slice_,
    "split": structure.split,
    "squeeze": structure.squeeze,
    "sub": structure.sub,
    "transpose": structure.transpose,
    # Factored -> activation: the weight is used up.
    "dot_general": consume.dot_general,
    "gather": consume.gather,
    # Programs inside the program.
    "checkpoint": control.remat,
    "closed_call": control.inline,
    "cond": control.cond,
    "core_call": control.inline,
    "custom_jvp_call": control.inline,
    "custom_vjp_call": control.inline,
    "jit": control.inline,
    "pjit": control.inline,
    "remat2": control.remat,
    "scan": control.scan,
    "while": control.while_,
}
