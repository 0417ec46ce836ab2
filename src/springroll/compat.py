"""The only file that touches JAX internals or anything that differs between jax 0.10.2 and 0.12."""

import contextlib
import contextvars
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend import core as jex
from jax.typing import ArrayLike

try:  # semi-public: where an equation came from
    from jax._src import source_info_util as _source_info
except ImportError:  # pragma: no cover - a future jax
    _source_info = None
from jax._src import core as _core
from jax._src.interpreters import partial_eval as _partial_eval

Literal = jex.Literal
Jaxpr: TypeAlias = jex.Jaxpr | jex.ClosedJaxpr


def once(make: Callable[[], Any], epoch: Array) -> Any:
    """The arrays that `make` returns, written to memory before anything reads them.

    Cheap elementwise producers such as counted noise are otherwise fused, and so repeated, into
    each consumer: the forward and the update of one step would each draw anew. The CPU compiler
    drops `lax.optimization_barrier` before it fuses, but keeps a conditional it cannot decide.
    `epoch` is an integer scalar that we know to be >= 0 and XLA does not.
    """

    def conditional() -> Any:
        shapes = jax.eval_shape(make)
        zeros = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return lax.cond(epoch >= 0, make, zeros)

    return lax.platform_dependent(cpu=conditional, default=lambda: lax.optimization_barrier(make()))


_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "platform that programs are traced for", default=None
)


def platform() -> str:
    """What programs are traced for, "cpu" or "gpu": the backend of this process, if nothing else is
    asked for (`tracing_for`)."""
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Trace programs as they are on another platform, apart from those of this process.

    JAX keeps what it traced by what is in force meanwhile, of which metadata of operations are a
    part: without them a program of this process could be met with a choice made for the other.
    """
    token = _platform.set(platform)
    try:
        with set_xla_metadata(springroll_platform=platform):
            yield
    finally:
        _platform.reset(token)


def size(x: Any) -> int:
    """Number of elements of an array, tracer or ShapeDtypeStruct."""
    return math.prod(x.shape)


def shape_of(atom: jex.Var | jex.Literal) -> tuple[int, ...]:
    """The shape of a variable or literal of a jaxpr."""
    return tuple(cast("_core.ShapedArray", atom.aval).shape)


def dtype_of(atom: jex.Var | jex.Literal) -> np.dtype:
    """The dtype of a variable or literal of a jaxpr."""
    return cast("_core.ShapedArray", atom.aval).dtype


_enclosing: contextvars.ContextVar[tuple[jex.JaxprEqn, ...]] = contextvars.ContextVar(
    "equations under way, innermost first", default=()
)


@contextlib.contextmanager
def inside(eqn: jex.JaxprEqn) -> Iterator[None]:
    """While the programs inside an equation are walked."""
    token = _enclosing.set((eqn, *_enclosing.get()))
    try:
        yield
    finally:
        _enclosing.reset(token)


def source_of(eqn: jex.JaxprEqn) -> str:
    """'file.py:12 (function)' of the user's line behind an equation.

    What JAX's own functions (`jnp.where`) consist of has no such line; theirs is that of the call.
    """
    if _source_info is None:
        return "an unknown line"
    for each in (eqn, *_enclosing.get()):
        line = shortened(_source_info.summarize(each.source_info), os.getcwd())
        if line:
            return line
    return "an unknown line"


def shortened(source: str, folder: str) -> str:
    """A source line without the folder of installed packages or `folder`, the working directory.

    >>> shortened("/env/lib/site-packages/flax/linear.py:3 (f)", "/home/me")
    'flax/linear.py:3 (f)'
    """
    _, installed, rest = source.partition("/site-packages/")
    return rest if installed else source.removeprefix(folder.rstrip("/") + "/")


@contextlib.contextmanager
def equation_context(eqn: jex.JaxprEqn) -> Iterator[None]:
    """Bind under the context and the name scope the equation was traced in."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(eqn.ctx.manager)
        if _source_info is not None:
            scope = _source_info.current_name_stack() + eqn.source_info.name_stack
            stack.enter_context(
                _source_info.user_context(eqn.source_info.traceback, name_stack=scope)
            )
        yield


def bind(eqn: jex.JaxprEqn, *args: ArrayLike, **changed: Any) -> list[Array]:
    """Run an equation's primitive on new operands; `changed` replaces some of its params."""
    bound = eqn.primitive.get_bind_params({**eqn.params, **changed})
    subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*subfuns, *args, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def scan_groups(eqn: jex.JaxprEqn) -> tuple[int, int]:
    """(number of constants, number of carries) among a scan equation's operands."""
    p = eqn.params
    if "num_consts" in p:
        return p["num_consts"], p["num_carry"]
    consts, carry, _ = p["ft_in"].update(list(eqn.invars)).unpack()  # jax >= 0.11
    return len(list(consts.vals)), len(list(carry.vals))


def inner_jaxpr(eqn: jex.JaxprEqn) -> Any:
    """The single inner jaxpr of a call-like equation (jit, remat, custom_jvp, ...), or None."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        if name in eqn.params:
            return eqn.params[name]
    return None


def inner_jaxprs(eqn: jex.JaxprEqn) -> list[jex.Jaxpr]:
    """All programs that an equation holds: branches, bodies, calls."""
    found = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr))
    return [open_jaxpr(x)[0] for x in found if isinstance(x, Jaxpr)]


def open_jaxpr(jaxpr: Jaxpr) -> tuple[jex.Jaxpr, list[ArrayLike]]:
    """(jaxpr, constants) of a closed or an open jaxpr."""
    if isinstance(jaxpr, jex.ClosedJaxpr):
        return jaxpr.jaxpr, list(jaxpr.consts)
    return jaxpr, []


def varying(x: ArrayLike) -> frozenset[str]:
    """The manual mesh axes along which a value varies (inside shard_map)."""
    aval = jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)  # before it, `vma` was a field of its own
    return frozenset(getattr(aval, "vma", ()) if kind is None else kind.varying)


def vary(x: Array, axes: Iterable[str]) -> Array:
    """x, marked as varying along those mesh axes where it does not vary yet."""
    missing = tuple(a for a in axes if a not in varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def vary_as(x: Array, *others: ArrayLike) -> Array:
    """x, marked as varying along the mesh axes of any of the others: a loop's first value."""
    return vary(x, sorted(frozenset[str]().union(*map(varying, others))))


def shard_map_options(eqn: jex.JaxprEqn) -> dict[str, Any]:
    """The keywords of jax.shard_map that rebuild a shard_map equation (specs aside)."""
    p = eqn.params
    names = p["newly_manual_axes"] if "newly_manual_axes" in p else p["manual_axes"]
    return {"mesh": p["mesh"], "axis_names": set(names), "check_vma": p["check_vma"]}


def prune(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """A closed jaxpr without the equations that no output depends on; all inputs are kept."""
    jaxpr, _ = _partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    return closed.replace(jaxpr=jaxpr)


def used_inputs(closed: jex.ClosedJaxpr, outputs: Sequence[bool] | None = None) -> list[bool]:
    """For each input of a closed jaxpr, whether an output or an effect depends on it.

    outputs: those that count; by default all.
    """
    wanted = [True] * len(closed.jaxpr.outvars) if outputs is None else list(outputs)
    _, used = _partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    return list(used)


def callers_of(eqn: jex.JaxprEqn) -> list[str]:
    """The qualified names of the functions that an equation was traced in, the innermost first."""
    traceback = getattr(eqn.source_info, "traceback", None)
    if traceback is None:
        return []
    codes, _ = traceback.raw_frames()
    return [code.co_qualname for code in codes]


class OutermostJit(Protocol):
    """A function that is compiled with options of its own where it is the outermost jit."""

    def __call__(self, *args: Any) -> Any: ...

    def lower(self, *args: Any) -> jax.stages.Lowered: ...

    def trace(self, *args: Any) -> jax.stages.Traced: ...


def edge_jit(fn: Callable[..., Any], *, frugal: bool = False, **options: Any) -> OutermostJit:
    """`jax.jit(fn, **options)` for the outermost call, honouring `lax.optimization_barrier`.

    On a CPU, XLA before jax 0.11 drops barriers before it fuses, and then repeats the chain of
    operations behind a value in every consumer: an integer network runs at a quarter of its speed.
    With `frugal` also as `frugal_jit`.
    """
    on_cpu = lambda: _keep_barriers() | (_frugal() if frugal else {})
    return _outermost_jit(fn, on_cpu, options)


def frugal_jit(fn: Callable[..., Any], **options: Any) -> OutermostJit:
    """`jax.jit(fn, **options)` for the outermost call, whose values live as briefly as they can.

    On a CPU XLA otherwise starts all that can be started, such as conversions of what all layers
    read, and holds it until it is used.
    """
    return _outermost_jit(fn, _frugal, options)


def lean_jit(fn: Callable[..., Any], **options: Any) -> OutermostJit:
    """`jax.jit(fn, **options)` for the outermost call, all of whose memory XLA decides on.

    On a CPU sums go to YNNPACK otherwise, with what leads to them. For the gradient of a norm of a
    single sequence it holds six more arrays as large as the sequence.
    """
    return _outermost_jit(fn, _own_sums, options)


def small_jit(fn: Callable[..., Any], **options: Any) -> OutermostJit:
    """`jax.jit(fn, **options)` for the outermost call, of operations that take microseconds.

    On a CPU they stay in the calling thread, as another takes longer to wake, and use its widest
    vectors. Barriers are not kept: XLA cannot emit those that it fuses.
    """
    return _outermost_jit(fn, lambda: _SMALL, options)


def _outermost_jit(
    fn: Callable[..., Any], on_cpu: Callable[[], dict[str, Any]], options: dict[str, Any]
) -> OutermostJit:
    """jit with compiler options on a CPU. They are allowed for an outermost jit only, so a call
    under another trace goes without."""
    inner = jax.jit(fn, **options)

    @functools.cache
    def outermost() -> Any:
        cpu = jax.default_backend() == "cpu"
        return jax.jit(fn, **options, compiler_options=on_cpu() if cpu else None)

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        return (outermost() if _core.trace_state_clean() else inner)(*args)

    outer = cast("OutermostJit", call)
    outer.lower = lambda *args: outermost().lower(*args)
    # What is traced for another platform than a CPU is not compiled with the options of one.
    outer.trace = lambda *args: (outermost() if platform() == "cpu" else inner).trace(*args)
    return outer


_SMALL = {"xla_cpu_multi_thread_eigen": False, "xla_cpu_prefer_vector_width": 512}


def _frugal() -> dict[str, Any]:
    return _known("xla_cpu_scheduler_type", "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED")


def _own_sums() -> dict[str, Any]:
    return _known("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")


@functools.cache
def _known(option: str, value: str) -> dict[str, Any]:
    """An option of the compiler, unless it does not know it."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except Exception:  # an XLA that does not know it raises one of its own
        return {}
    return {option: value}


def _keep_barriers() -> dict[str, Any]:
    old = tuple(int(part) for part in jax.__version__.split(".")[:2]) < (0, 11)
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if old else {}


def has_cudnn_attention(width: int) -> bool:
    """Whether the default device computes attention of heads of this width by cuDNN."""
    if jax.default_backend() != "gpu":
        return False
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    try:
        cudnn.check_cudnn_version()
    except RuntimeError:  # none is installed
        return False
    widest = 256 if cudnn.check_compute_capability("9.0") else 128
    return cudnn.check_compute_capability("8.0") and width % 8 == 0 and width <= widest


def cudnn_attention(q_BTHK: Array, k_BTNK: Array, v_BTNK: Array, scale: float) -> Array:
    """Causal attention (B, T, H, K) with N shared key-value heads, by cuDNN."""
    return jax.nn.dot_product_attention(
        q_BTHK, k_BTNK, v_BTNK, scale=scale, is_causal=True, implementation="cudnn"
    )


def coordination(
    address: str,
    size: int,
    rank: int,
    *,
    local_devices: Sequence[int] | None,
    patience: int,
    heartbeat: int,
) -> Any:
    """Join the processes of a run; to be called before the backend starts.

    Of `jax.distributed` only the store is used, whose client is returned. A process that dies does
    not end the others, unless it is the first one: then JAX ends them with a message of its own.

    Args:
        address: host:port of the first process.
        size: how many processes there are.
        rank: which this is.
        local_devices: its accelerators on this host; None: all.
        patience: seconds to wait for the others.
        heartbeat: seconds without a sign of life, and a process counts as gone.

    Raises:
        Exception: a runtime error of JAX's, where the others do not come in time.
    """
    from jax._src import distributed

    jax.config.update("jax_enable_recoverability", True)
    jax.distributed.initialize(
        address,
        size,
        rank,
        local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=patience,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=heartbeat,
    )
    return distributed.global_state.client
