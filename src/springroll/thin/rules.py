"""The primitive rules: one dict, from a primitive's name to what it does to a Factored operand.

A rule is `rule(frame, eqn, *operands) -> list of outputs`, or None for "no thin form here": the
operands are then densified and reported. docs/factored.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable

from springroll.thin import arithmetic, conv, gather, join, shard, structure
from springroll.thin import contract as consume
from springroll.thin import control_flow as control

RULES: dict[str, Callable] = {
    # Factored -> Factored: the weight changes shape, type or scale and stays thin.
    "add": arithmetic.add,
    "add_any": arithmetic.add,
    "all_gather": shard.all_gather,
    "all_gather_invariant": shard.all_gather,
    "broadcast_in_dim": structure.broadcast_in_dim,
    "concatenate": join.concatenate,
    "convert_element_type": arithmetic.convert_element_type,
    "copy": structure.identity,
    "copy_p": structure.identity,
    "device_put": structure.identity,
    "div": arithmetic.div,
    "dynamic_slice": structure.dynamic_slice,
    "mul": arithmetic.mul,
    "name": structure.each_part,
    "neg": arithmetic.neg,
    "optimization_barrier": structure.barrier,
    "pad": structure.pad,
    "pcast": shard.make_varying,
    "pvary": shard.make_varying,
    "mesh_cast": shard.sharding_constraint,
    "reduce_precision": arithmetic.reduce_precision,
    "reduce_sum": structure.reduce_sum,
    "reshard": shard.sharding_constraint,
    "reshape": structure.reshape,
    "rev": structure.rev,
    "sharding_constraint": shard.sharding_constraint,
    "slice": structure.slice_,
    "split": structure.split,
    "squeeze": structure.squeeze,
    "stack": join.stack,
    "stop_gradient": structure.each_part,
    "sub": arithmetic.sub,
    "tile": structure.tile,
    "transpose": structure.transpose,
    "unstack": structure.unstack,
    # Factored -> activation: the weight is used up.
    "conv_general_dilated": conv.conv_general_dilated,
    "dot_general": consume.dot_general,
    "gather": gather.gather,
    "ragged_dot_general": consume.ragged_dot_general,
    # Programs inside the program.
    "checkpoint": control.remat,
    "closed_call": control.inline,
    "composite": control.inline,
    "cond": control.cond,
    "core_call": control.inline,
    "custom_jvp_call": control.inline,
    "custom_vjp_call": control.inline,
    "custom_vmap_call": control.inline,
    "eval_jaxpr": control.inline,
    "jit": control.call,
    "pjit": control.call,
    "remat2": control.remat,
    "scan": control.scan,
    "shard_map": shard.shard_map,
    "while": control.while_,
}

# Rules that hand their operands to a program inside and look at nothing themselves.
_CONTROL = (control.call, control.cond, control.inline, control.remat, control.scan, control.while_)
INSIDE = frozenset(name for name, rule in RULES.items() if rule in _CONTROL)
