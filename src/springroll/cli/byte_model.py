"""What the commands ask of a trained model that reads and writes bytes, whatever trained it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from springroll.errors import InputError
from springroll.pretrain.config import PretrainConfig
from springroll.train.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np

Draw = Callable[[Any, Any], Any]  # (logits (256,), key) -> the next byte () uint8


class ByteModel(NamedTuple):
    """A model as functions of its weights."""

    saved: Any
    """Shapes of the part of a checkpoint that holds the weights."""
    prefix: str
    """Where in a checkpoint that part is."""
    params: Callable[[Any], Any]
    """The weights of what was saved."""
    bits: Callable[[Any, "np.ndarray"], float]
    """(params, rows (n, T + 1) uint8) -> mean bits per predicted byte; no memory between rows."""
    write: Callable[[Any, "np.ndarray", int, Draw, int], bytes]
    """(params, text so far, length, draw, seed) -> the bytes that follow."""
    explained: Callable[[], tuple[Any, ...]]
    """(fn, params, *args) for `sr.explain`."""


def byte_model(config: PretrainConfig | TrainConfig) -> ByteModel:
    """The model of a run's config; imports JAX, computes nothing."""
    return _egg(config) if isinstance(config, PretrainConfig) else _decoder(config)


def _egg(config: PretrainConfig) -> ByteModel:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from springroll.compat import edge_jit
    from springroll.models.egg import EggConfig, egg
    from springroll.quant.registers import fastest_registers

    model = egg(
        EggConfig(
            n_layers=config.n_layers,
            hidden=config.hidden,
            precision=config.precision,
            registers=fastest_registers() if config.integer else "int8",
        )
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def mean_bits(params: Any, rows: Any) -> Any:
        logits = jax.vmap(lambda row: model.apply(params, row[:-1], model.state())[0])(rows)
        labels = rows[:, 1:, None].astype(jnp.int32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1)
        return -jnp.mean(chosen) / jnp.log(2.0)

    def write(params: Any, start: Any, length: int, draw: Draw, seed: int) -> bytes:
        """One `lax.scan` over bytes; carried are the recurrent state and the logits."""

        def step(before: tuple[Any, Any], key: Any) -> tuple[tuple[Any, Any], Any]:
            state, logits = before
            byte = draw(logits, key)
            logits, state = model.apply(params, byte[None], state)
            return (state, logits[0]), byte

        def written(key: Any) -> Any:
            logits, state = model.apply(params, jnp.asarray(start), model.state())
            return jax.lax.scan(step, (state, logits[-1]), jax.random.split(key, length))[1]

        return np.asarray(edge_jit(written)(jax.random.key(seed))).tobytes()

    return ByteModel(
        saved=shapes,
        prefix="state/params",
        params=lambda saved: saved,
        bits=lambda params, rows: float(edge_jit(mean_bits)(params, rows)),
        write=write,
        explained=lambda: (
            model.score,
            shapes,
            jax.ShapeDtypeStruct((config.tokens_per_member + 1,), jnp.uint8),
            jax.eval_shape(model.state),
        ),
    )


def _decoder(config: TrainConfig) -> ByteModel:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from springroll.models.hf.load import is_hf_folder
    from springroll.train.build import make, mean_nats, weights_of

    if is_hf_folder(config.model):
        raise InputError(
            f"the run learnt the tokens of {config.model}; this command reads models of bytes"
        )
    model, _ = make(config)
    saved, prefix, params = weights_of(config)
    window = config.sequence

    def write(params: Any, start: Any, length: int, draw: Draw, seed: int) -> bytes:
        """The last `tokens` bytes are read anew for every byte."""
        end = len(start)
        text = jnp.zeros(max(window, end + length), jnp.uint8).at[:end].set(start)

        def step(text: Any, now: Any) -> tuple[Any, None]:
            at, key = now
            first = jnp.maximum(at - window, 0)
            seen = jax.lax.dynamic_slice(text, (first,), (window,))
            logits = model.apply(params, seen[None].astype(jnp.int32))[0, at - first - 1]
            return text.at[at].set(draw(logits, key)), None

        def written(text: Any, key: Any) -> Any:
            places = end + jnp.arange(length)
            return jax.lax.scan(step, text, (places, jax.random.split(key, length)))[0]

        text = jax.jit(written)(text, jax.random.key(seed))
        return np.asarray(text[end : end + length]).tobytes()

    def bits(params: Any, rows: Any) -> float:
        nats = jax.jit(lambda params: mean_nats(model, params, rows, config.batch))(params)
        return float(nats) / float(np.log(2))

    return ByteModel(
        saved=saved,
        prefix=prefix,
        params=params,
        bits=bits,
        write=write,
        explained=lambda: (
            lambda params, tokens: model.loss(params, tokens)[0],
            jax.eval_shape(params, saved),
            jax.ShapeDtypeStruct((1, config.sequence + 1), jnp.int32),
        ),
    )
