"""Temporary memory of a program, counted over its jaxpr: no compiler is asked, it takes a moment.

XLA fuses what is computed number by number into whatever reads it, and stores what products, loops,
sums and sorts make, and what products, loops and sorts read. So it is counted here: an array is
stored from where it is first needed whole until it is last read; a fused one is computed again from
its sources, which live as long. Arguments do not count, and results give their memory to what is
alive before them. Of the programs of a streamed step in bfloat16 the peak is within a tenth of what
XLA compiles for an H200; `tests/planner/test_liveness.py` holds its figures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend import core as jex

from springroll import compat

SUMS = frozenset(f"reduce_{kind}" for kind in ("sum", "max", "min", "and", "or", "prod"))
LOOPS = frozenset(("scan", "while", "cond"))
# May write their result over an operand that nobody reads afterwards.
IN_PLACE = LOOPS | {"scatter", "scatter-add", "scatter_add", "dynamic_update_slice"}
PRODUCTS = frozenset(("dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated"))
SORTS = frozenset(("sort", "top_k", "cumsum", "argmax", "argmin", "threefry2x32", "random_bits"))
KERNELS = frozenset(("custom_call", "pallas_call", "qr", "eigh", "svd", "cholesky"))
STORED = SUMS | IN_PLACE | PRODUCTS | SORTS | KERNELS
LAID_OUT = frozenset(("reshape", "squeeze", "optimization_barrier"))  # the same bytes


def temporary_bytes(program: compat.Jaxpr) -> int:
    """Bytes that a program holds at its peak beside arguments and results.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    >>> temporary_bytes(jax.make_jaxpr(lambda x: jnp.sin(x @ x) @ x)(x)) == 256 * 256 * 4
    True

    Args:
        program: closed or open, of `jax.make_jaxpr` or `jitted.trace(...).jaxpr`.
    """
    return _Walk().temporary(compat.open_jaxpr(program)[0])


def beside_bytes(program: compat.Jaxpr, donated: Sequence[bool]) -> int:
    """Bytes that a program holds at its peak beside its arguments: results that are written over
    none of them count.

    Args:
        program: as of `temporary_bytes`.
        donated: which of its arguments results may be written over.
    """
    return _Walk().beside(compat.open_jaxpr(program)[0], donated)


@dataclass(eq=False)
class _Value:
    """An array that is stored, or a fused one, which stands for its sources."""

    bytes: int
    sources: frozenset["_Value"] = frozenset()
    stored: bool = True
    counted: bool = True  # arguments and literals are not
    last: int = -1  # moment of the last reading
    over: tuple["_Value", ...] = ()  # what it may be written over

    @property
    def behind(self) -> frozenset["_Value"]:
        """The stored arrays that it is read from."""
        return frozenset((self,)) if self.stored else self.sources


@dataclass
class _Moment:
    """What begins to exist together, and the temporary bytes of a loop's body."""

    made: list[_Value] = field(default_factory=list)
    inner: int = 0


LITERAL = _Value(0, counted=False)


class _Walk:
    """One program, followed in the order in which it was traced."""

    def __init__(self) -> None:
        self._moments: list[_Moment] = []
        self._values: dict[jex.Var, _Value] = {}

    def temporary(self, program: jex.Jaxpr) -> int:
        """The peak less the results."""
        self._enter(program, [None] * len(program.invars))
        self._follow(program)
        results = {value: None for value in map(self._at, program.outvars)}
        for value in results:
            self._read([value], whole=True)
            value.last = len(self._moments)
        return max(0, self._peak() - sum(value.bytes for value in results if value.counted))

    def beside(self, program: jex.Jaxpr, donated: Sequence[bool]) -> int:
        """The peak with the donated arguments, less these."""
        pairs = zip(program.invars, donated, strict=True)
        given = [_Value(_bytes(var)) if goes else None for var, goes in pairs]
        owned = [value for value in given if value is not None]
        self._moments.append(_Moment(owned))
        self._enter(program, given)
        self._follow(program)
        self._read(map(self._at, program.outvars), whole=True)
        for value in map(self._at, program.outvars):
            value.last = len(self._moments)
        return self._peak() - sum(value.bytes for value in owned)

    def inside(self, body: jex.Jaxpr, first: int, count: int) -> int:
        """The peak of a loop's body, whose carries are the `count` arguments from `first` on.

        What is added to its carry is written over it.
        """
        self._enter(body, [None] * len(body.invars))
        self._follow(body)
        carries = [self._at(var) for var in body.invars[first : first + count]]
        for place, var in enumerate(body.outvars):
            value = self._at(var)
            over = value.over if value.stored else value.sources
            written_over = place < count and carries[place] in over
            self._read([value], whole=not written_over)
            value.counted = value.counted and not written_over
            value.last = len(self._moments)
        return self._peak()

    def _enter(self, program: jex.Jaxpr, given: list[_Value | None]) -> None:
        for var, value in zip(program.invars, given, strict=True):
            self._values[var] = value or _Value(_bytes(var), counted=False)
        for var in program.constvars:
            self._values[var] = _Value(_bytes(var), counted=False)

    def _at(self, atom: Any) -> _Value:
        return LITERAL if isinstance(atom, jex.Literal) else self._values[atom]

    def _follow(self, program: jex.Jaxpr) -> None:
        readers = _readers(program)
        for eqn in program.eqns:
            name, given = eqn.primitive.name, [self._at(atom) for atom in eqn.invars]
            called = None if name in STORED else compat.inner_jaxpr(eqn)
            if called is not None:
                self._call(eqn, compat.open_jaxpr(called)[0], given)
            elif name in STORED:
                self._store(eqn, given, readers)
            elif name in LAID_OUT and all(value.stored for value in given):
                for var, value in zip(eqn.outvars, given, strict=False):
                    self._values[var] = value
            else:
                sources = frozenset[_Value]().union(*(value.behind for value in given))
                for var in eqn.outvars:
                    self._values[var] = _Value(_bytes(var), sources, stored=False)

    def _call(self, eqn: jex.JaxprEqn, program: jex.Jaxpr, given: list[_Value]) -> None:
        """A call inside the program is part of it."""
        self._enter(program, [*given[len(given) - len(program.invars) :]])
        self._follow(program)
        for var, result in zip(eqn.outvars, program.outvars, strict=True):
            self._values[var] = self._at(result)

    def _store(
        self, eqn: jex.JaxprEqn, given: list[_Value], readers: dict[jex.Var, list[jex.JaxprEqn]]
    ) -> None:
        name = eqn.primitive.name
        moment = self._read(given, whole=name not in SUMS)
        moment.inner = _inside(eqn)
        over = tuple(value for value in given if value.stored) if name in IN_PLACE else ()
        for var in eqn.outvars:
            size = _bytes(var)
            reading = [each.primitive.name for each in readers.get(var, ())]
            if name in PRODUCTS and reading == ["convert_element_type"]:
                size = _bytes(readers[var][0].outvars[0])  # rounded as it is stored
            value = _Value(size, last=len(self._moments) - 1, over=over)
            self._values[var] = value
            moment.made.append(value)

    def _read(self, values: Iterable[_Value], whole: bool) -> _Moment:
        """The next moment, at which these are read; `whole`: they have to be stored for it."""
        now, moment = len(self._moments), _Moment()
        self._moments.append(moment)
        for value in values:
            for source in value.behind:
                source.last = now
            if whole and not value.stored:
                value.stored, value.last, value.over = True, now, tuple(value.sources)
                moment.made.append(value)
        return moment

    def _peak(self) -> int:
        peak, alive = 0, set[_Value]()
        for now, moment in enumerate(self._moments):
            for value in moment.made:
                if value.counted:
                    fits = (v for v in value.over if v.last == now and v.bytes == value.bytes)
                    alive.discard(next((v for v in fits if v in alive), value))
                    alive.add(value)
            peak = max(peak, moment.inner + sum(value.bytes for value in alive))
            alive = {value for value in alive if value.last > now}
        return peak


def _inside(eqn: jex.JaxprEqn) -> int:
    """Temporary bytes of the body of a loop, or of the larger branch."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        body = compat.open_jaxpr(params["jaxpr"])[0]
        return _Walk().inside(body, *compat.scan_groups(eqn))
    if name == "while":
        body, fixed = compat.open_jaxpr(params["body_jaxpr"])[0], params["body_nconsts"]
        return _Walk().inside(body, fixed, len(body.invars) - fixed)
    if name == "cond":
        return max(temporary_bytes(branch) for branch in params["branches"])
    return 0


def _readers(program: jex.Jaxpr) -> dict[jex.Var, list[jex.JaxprEqn]]:
    """The equations that read each variable; what is a result is read once more."""
    found: dict[jex.Var, list[jex.JaxprEqn]] = {}
    for eqn in program.eqns:
        for var in eqn.invars:
            if not isinstance(var, jex.Literal):
                found.setdefault(var, []).append(eqn)
    for var in program.outvars:
        if not isinstance(var, jex.Literal):
            found.setdefault(var, []).extend([program.eqns[-1]] * 2 if program.eqns else [])
    return found


def _bytes(var: jex.Var) -> int:
    return compat.size(var.aval) * compat.dtype_of(var).itemsize
