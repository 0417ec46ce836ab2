"""One rule per primitive: what it does to a `Factored` operand, and how it moves the axes.

docs/factored.md shows how to add one.
"""

from springroll.thin.axis_trace import elementwise, first_operand, same_axes
from springroll.thin.interpreter import Rule
from springroll.thin.rules import (
    arithmetic,
    control_flow,
    convolution,
    joining,
    lookup,
    matmul,
    shape,
    sharding,
)

_call = Rule(control_flow.inline, control_flow.call_flow, inside=True)
_jit = Rule(control_flow.call, control_flow.call_flow, inside=True)
_remat = Rule(control_flow.remat, control_flow.call_flow, inside=True)

RULES: dict[str, Rule] = {
    # Factored -> Factored: the weight changes shape, type or scale and stays low-rank.
    "add": Rule(arithmetic.add, elementwise),
    "add_any": Rule(arithmetic.add, elementwise),
    "all_gather": Rule(sharding.all_gather, same_axes),
    "all_gather_invariant": Rule(sharding.all_gather, same_axes),
    "broadcast_in_dim": Rule(shape.broadcast_in_dim, shape.broadcast_flow),
    "concatenate": Rule(joining.concatenate, joining.concatenate_flow),
    "convert_element_type": Rule(arithmetic.convert_element_type, same_axes),
    "copy": Rule(shape.identity, same_axes),
    "copy_p": Rule(shape.identity, same_axes),
    "device_put": Rule(shape.identity, same_axes),
    "div": Rule(arithmetic.div, elementwise),
    "dynamic_slice": Rule(shape.dynamic_slice, shape.window_flow),
    "mesh_cast": Rule(sharding.sharding_constraint, same_axes),
    "mul": Rule(arithmetic.mul, elementwise),
    "name": Rule(shape.each_part, same_axes),
    "neg": Rule(arithmetic.neg, same_axes),
    "optimization_barrier": Rule(shape.barrier, same_axes),
    "pad": Rule(shape.pad, first_operand),
    "pcast": Rule(sharding.make_varying, same_axes),
    "pvary": Rule(sharding.make_varying, same_axes),
    "reduce_precision": Rule(arithmetic.reduce_precision, same_axes),
    "reduce_sum": Rule(shape.reduce_sum, shape.dropped("axes")),
    "reshard": Rule(sharding.sharding_constraint, same_axes),
    "reshape": Rule(shape.reshape, shape.reshape_flow),
    "rev": Rule(shape.rev, same_axes),
    "sharding_constraint": Rule(sharding.sharding_constraint, same_axes),
    "slice": Rule(shape.slice_, shape.window_flow),
    "split": Rule(shape.split, first_operand),
    "squeeze": Rule(shape.squeeze, shape.dropped("dimensions")),
    "stack": Rule(joining.stack, joining.stack_flow),
    "stop_gradient": Rule(shape.each_part, same_axes),
    "sub": Rule(arithmetic.sub, elementwise),
    "tile": Rule(shape.tile, same_axes),
    "transpose": Rule(shape.transpose, shape.transpose_flow),
    "unstack": Rule(shape.unstack, shape.unstack_flow),
    # Factored -> activation: the weight is used up.
    "conv_general_dilated": Rule(convolution.conv_general_dilated, convolution.conv_flow),
    "dot_general": Rule(matmul.dot_general, matmul.dot_flow),
    "gather": Rule(lookup.gather, lookup.gather_flow),
    "ragged_dot_general": Rule(matmul.ragged_dot_general, matmul.ragged_dot_flow),
    # Programs inside the program.
    "checkpoint": _remat,
    "closed_call": _call,
    "composite": _call,
    "cond": Rule(control_flow.cond, control_flow.cond_flow, inside=True),
    "core_call": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "custom_vmap_call": _call,
    "eval_jaxpr": _call,
    "jit": _jit,
    "pjit": _jit,
    "remat2": _remat,
    "scan": Rule(control_flow.scan, control_flow.scan_flow, inside=True),
    "shard_map": Rule(sharding.shard_map, sharding.shard_map_flow),
    "while": Rule(control_flow.while_, control_flow.while_flow, inside=True),
}
