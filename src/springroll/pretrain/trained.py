"""A byte model that `pretrain` trained: scored, and let write."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.compat import edge_jit
from springroll.generate.byte_model import ByteModel, Draw
from springroll.models.cross_entropy import bits_per_byte
from springroll.pretrain.build import model_of
from springroll.pretrain.config import PretrainConfig
from springroll.run.job import Explained, SavedWeights
from springroll.trees import PyTree


def saved_weights(config: PretrainConfig) -> SavedWeights:
    """Where in a checkpoint the weights are."""
    model = model_of(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return SavedWeights(shapes, "state/params", lambda saved: saved, model.config)


def byte_model(config: PretrainConfig) -> ByteModel:
    """The model as functions of its weights."""
    model = model_of(config)

    def mean_bits(params: PyTree, rows: Array) -> Array:
        logits = jax.vmap(lambda row: model.apply(params, row[:-1], model.state())[0])(rows)
        return bits_per_byte(logits, rows)

    def write(params: PyTree, start: np.ndarray, length: int, draw: Draw, seed: int) -> bytes:
        """One `lax.scan` over bytes; carried are the recurrent state and the logits."""

        def step(before: tuple[PyTree, Array], key: Array) -> tuple[tuple[PyTree, Array], Array]:
            state, logits = before
            byte = draw(logits, key)
            logits, state = model.apply(params, byte[None], state)
            return (state, logits[0]), byte

        def written(key: Array) -> Array:
            logits, state = model.apply(params, jnp.asarray(start), model.state())
            return jax.lax.scan(step, (state, logits[-1]), jax.random.split(key, length))[1]

        return np.asarray(edge_jit(written)(jax.random.key(seed))).tobytes()

    return ByteModel(
        bits=lambda params, rows: float(edge_jit(mean_bits)(params, rows)),
        write=write,
    )


def explained(config: PretrainConfig) -> Explained:
    """The score of one stream of bytes."""
    model = model_of(config)
    tokens = jax.ShapeDtypeStruct((config.tokens_per_member + 1,), jnp.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return Explained(model.score, shapes, (tokens, jax.eval_shape(model.state)))
