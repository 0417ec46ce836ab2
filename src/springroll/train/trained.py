"""A decoder that `train` trained: where its weights are, and how it is scored and let write."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.table import Table

from springroll.generate.byte_model import ByteModel, Draw
from springroll.models.decoder_config import structs
from springroll.models.hf.files import family_of
from springroll.models.hf.lora import Adapter
from springroll.models.protocols import LanguageModel
from springroll.run.job import (
    EvalOptions,
    Evaluation,
    Explained,
    Figures,
    OpenRun,
    SavedWeights,
)
from springroll.run.weights import load_weights
from springroll.subspace.adapters import first_adapters
from springroll.tasks.corpus import Corpus
from springroll.tasks.text import document_encoder, tokenized
from springroll.train.build import language_model, make, mean_nats
from springroll.train.config import TrainConfig
from springroll.train.data import Records, packs
from springroll.train.lora import base_of, frozen_identity, merged, rank_of, scale_of
from springroll.train.pretrained import folder_of
from springroll.trees import PyTree


def saved_weights(config: TrainConfig) -> SavedWeights:
    """Where in a checkpoint the weights are."""
    model, learner = make(config)
    like = config.model if folder_of(config.model) else None
    if config.optimizer == "lora":
        return saved_adapters(config, model)
    saved = jax.eval_shape(learner.init, jax.eval_shape(lambda: jax.random.key(0)))
    if config.engine == "stream" and config.optimizer != "lowgrad":
        # Its optimizer states are others, its weights are not.
        saved = jax.eval_shape(learner.params, saved)
        return SavedWeights(
            saved, "carry/params", lambda saved: saved, model.config, like, config.dtype
        )
    return SavedWeights(saved, "carry", learner.params, model.config, like, config.dtype)


def saved_adapters(config: TrainConfig, model: LanguageModel) -> SavedWeights:
    """The same of adapters; their weights are those of the frozen model with B A added."""
    base = base_of(config, model)
    part = jax.eval_shape(lambda: first_adapters(jax.random.key(0), base.floats, rank_of(config)))
    return SavedWeights(
        part,
        "carry/params",
        lambda trained: merged(base, trained, scale_of(config)),
        model.config,
        config.model,
        config.dtype,
        frozen_identity(config),
        Adapter(rank_of(config), scale_of(config) * rank_of(config)),
    )


def byte_model(config: TrainConfig) -> ByteModel:
    """The model of bytes as functions of its weights."""
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

    return ByteModel(bits=bits(config), write=write)


def bits(config: TrainConfig) -> Callable[[PyTree, np.ndarray], float]:
    """(weights, rows (n, T + 1) of tokens or bytes) -> mean bits per predicted one."""
    model = language_model(config)

    def of(params: PyTree, rows: np.ndarray) -> float:
        nats = jax.jit(lambda params: mean_nats(model, params, rows, config.batch))(params)
        return float(nats) / float(np.log(2))

    return of


def readable(config: TrainConfig) -> Callable[[Corpus], tuple[Corpus, float]]:
    """A text in the tokens of the model, and how many of them a byte is."""
    folder = folder_of(config.model)
    if folder is None:
        return lambda corpus: (corpus, 1.0)
    return lambda corpus: tokenized(corpus, document_encoder(folder))


def evaluate_records(run: OpenRun[TrainConfig], options: EvalOptions) -> Evaluation:
    """Nats per answer token of the newest weights: of the records that the run held out, or of all
    records of another data set.

    Raises:
        InputError: there is no checkpoint, or the records cannot be read.
    """
    config, model = run.config, language_model(run.config)
    asked = dataclasses.replace(
        config,
        data=options.data or config.data,
        valid_streams=options.streams or config.valid_streams,
    )
    records = Records(asked, packs(config, model.config))
    of = records.encoded
    chosen = range(len(of.places)) if options.data else of.pieces(records.sides().held_out)
    sample = records.sample(chosen)
    weights = load_weights(run, saved_weights(config))
    score = jax.jit(lambda params: mean_nats(model, params, sample, config.batch))
    nats = float(score(weights.params))
    answers = int((sample.targets >= 0).sum())
    figures: Figures = {
        "run": run.path,
        "generation": weights.generation,
        "data": asked.data,
        "answer_tokens": answers,
        "nats_per_answer_token": nats,
    }
    table = Table("nats per answer token", "", caption=f"{answers:,} answer tokens of {asked.data}")
    table.add_row("the run", f"{nats:.4f}")
    return Evaluation(figures, table, list(weights.notes))


def explained(config: TrainConfig) -> Explained:
    """The loss of one row of tokens."""
    model = language_model(config)
    params = structs(family_of(model.config).shapes(model.config), config.dtype)
    tokens = jax.ShapeDtypeStruct((1, config.sequence + 1), jnp.int32)
    loss = lambda params, tokens: model.loss(params, tokens)[0]
    return Explained(loss, params, (tokens,))
