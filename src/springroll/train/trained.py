"""A decoder that `train` trained: where its weights are, and how it is scored and let write."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.generate.byte_model import ByteModel, Draw
from springroll.models.hf.files import is_hf_folder
from springroll.run.job import Explained, SavedWeights
from springroll.train.build import language_model, make, mean_nats
from springroll.train.config import TrainConfig
from springroll.trees import PyTree


def saved_weights(config: TrainConfig) -> SavedWeights:
    """Where in a checkpoint the weights are."""
    model, learner = make(config)
    like = config.model if is_hf_folder(config.model) else None
    saved = jax.eval_shape(learner.init, jax.eval_shape(lambda: jax.random.key(0)))
    if config.engine == "stream" and config.optimizer != "lowgrad":
        # Its optimizer states are others, its weights are not.
        saved = jax.eval_shape(learner.params, saved)
        return SavedWeights(
            saved, "carry/params", lambda saved: saved, model.config, like, config.dtype
        )
    return SavedWeights(saved, "carry", learner.params, model.config, like, config.dtype)


def byte_model(config: TrainConfig) -> ByteModel:
    """The model of bytes as functions of its weights.

    Raises:
        InputError: the model reads the tokens of a Hugging Face folder.
    """
    if is_hf_folder(config.model):
        raise InputError(
            f"the run learnt the tokens of {config.model}; this command reads models of bytes"
        )
    model = language_model(config)
    window = config.sequence

    def write(params: PyTree, start: np.ndarray, length: int, draw: Draw, seed: int) -> bytes:
        """The last `sequence` bytes are read anew for every byte."""
        end = len(start)
        text = jnp.zeros(max(window, end + length), jnp.uint8).at[:end].set(start)

        def step(text: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
            at, key = now
            first = jnp.maximum(at - window, 0)
            context = jax.lax.dynamic_slice(text, (first,), (window,))
            logits = model.apply(params, context[None].astype(jnp.int32))[0, at - first - 1]
            return text.at[at].set(draw(logits, key)), None

        def written(text: Array, key: Array) -> Array:
            places = end + jnp.arange(length)
            return jax.lax.scan(step, text, (places, jax.random.split(key, length)))[0]

        text = jax.jit(written)(text, jax.random.key(seed))
        return np.asarray(text[end : end + length]).tobytes()

    def bits(params: PyTree, rows: np.ndarray) -> float:
        nats = jax.jit(lambda params: mean_nats(model, params, rows, config.batch))(params)
        return float(nats) / float(np.log(2))

    return ByteModel(bits=bits, write=write)


def explained(config: TrainConfig) -> Explained:
    """The loss of one row of tokens."""
    saved = saved_weights(config)
    model = language_model(config)
    tokens = jax.ShapeDtypeStruct((1, config.sequence + 1), jnp.int32)
    loss = lambda params, tokens: model.loss(params, tokens)[0]
    return Explained(loss, jax.eval_shape(saved.params, saved.part), (tokens,))
