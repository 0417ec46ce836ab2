"""Rules for weights that are spread over devices: shard_map, gathers inside it, layout wishes."""

import dataclasses

import jax
from jax import Array
from jax.extend import core as jex
from jax.sharding import PartitionSpec

from springroll import compat
from springroll.thin.axis_trace import AxisTrace, Refs
from springroll.thin.factored_array import Factored, Side
from springroll.thin.interpreter import Frame, Operand, Outputs


def sharding_constraint(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    """A layout wish for the big array; XLA places the thin factors itself."""
    return [dataclasses.replace(w, base=compat.bind(eqn, w.base)[0])]


def make_varying(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    """pvary and pcast: each part is cast over those mesh axes along which it does not vary yet."""
    axes = eqn.params["axes"]
    return [w.map(lambda a, _: compat.vary(a, axes))]


def all_gather(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    """Weights stored in shards: the base and the factor that carries the axis are gathered."""
    p = eqn.params
    axis, names = p["all_gather_dimension"], set(p["axis_name"])
    if not p["tiled"] or w.roles[axis] == "s":
        return None
    other: Side = "right" if w.roles[axis] == "m" else "left"
    if names & compat.varying(w.factor(other)):
        return None  # every device has its own: the gathered weight is not one thin term

    def go(a: Array, axes: tuple[int, ...]) -> Array:
        if axis not in axes:
            return a
        return compat.bind(eqn, a, all_gather_dimension=axes.index(axis))[0]

    return [w.map(go)]


def shard_map(frame: Frame, eqn: jex.JaxprEqn, *args: Operand) -> Outputs:
    """Each factor is split the way the axes of base that it carries are split."""
    specs = [
        _project(v, spec) if isinstance(v, Factored) else spec
        for v, spec in zip(args, eqn.params["in_specs"], strict=True)
    ]

    def body(*parts: Operand) -> tuple[Array, ...]:
        outs = frame.run(eqn.params["jaxpr"], parts)
        return tuple(frame.dense(out, eqn, "shard_map (an output)") for out in outs)

    mapped = jax.shard_map(
        body,
        in_specs=tuple(specs),
        out_specs=tuple(eqn.params["out_specs"]),
        **compat.shard_map_options(eqn),
    )
    return list(mapped(*args))


def shard_map_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    trace.run(eqn.params["jaxpr"], refs, eqn.invars)
    return [() for _ in eqn.outvars]


def _project(w: Factored, spec: PartitionSpec) -> Factored:
    """A Factored of PartitionSpecs; the rank axis is never split."""
    by_axis = [*spec, *[None] * (w.ndim - len(spec))]

    def factor(side: Side) -> PartitionSpec:
        return PartitionSpec(*(by_axis[i] for i in w.axes(side)), None)

    gain = None if w.gain is None else PartitionSpec()
    return dataclasses.replace(
        w, base=PartitionSpec(*by_axis), left=factor("left"), right=factor("right"), gain=gain
    )
