"""The optimizers of `springroll train` by name: optax transformations, and what drives them."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from springroll.models.decoder import stages
from springroll.models.moe import balance
from springroll.models.protocols import LanguageModel
from springroll.quant.quantize_state import quantize_state
from springroll.quant.split_master import high_half, with_split_master
from springroll.quant.stochastic_rounding import with_stochastic_rounding
from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.hf_adam import adam_direction
from springroll.subspace.layerwise import layerwise
from springroll.subspace.lowgrad import Trainer, lowgrad
from springroll.thin.discovery import discover
from springroll.thin.roles import WeightRoles
from springroll.train.config import TrainConfig
from springroll.train.learners import (
    Learner,
    Loss,
    layerwise_learner,
    lowgrad_learner,
    optax_learner,
)

Schedule = Callable[[Any], Any]

# Peak learning rates for models of 1M to 5M parameters (docs/lowgrad.md has the grids).
LR = {
    "adamw": 2.5e-3,
    "galore": 1e-2,
    "apollo": 5e-3,
    "apollo-mini": 5e-3,
    "fira": 1e-2,
    "muon": 1e-2,
    "lowgrad": 2.5e-3,
}
MUON_ADAM_SHARE = 0.25  # Muon's learning rate is for orthogonal steps; Adam's, for the rest, below
UNLIMITED_WARMUP = 1000  # steps that `warmup` is a share of when the schedule has no end

PROJECTED = re.compile(r"layers/.*_proj$")  # the matrices of a block; not router, embedding, head


def learner_for(
    config: TrainConfig,
    model: LanguageModel,
    init: Callable[[Any], Any],
    loss: Loss | None = None,
) -> Learner:
    """What trains `model` as configured, from the float32 parameters that `init` makes of a key.

    `loss` is the model's own by default, of text; `layerwise` has no other.
    """
    loss = model.loss if loss is None else loss
    if config.optimizer == "lowgrad":
        cast = lambda key: jax.tree.map(lambda x: x.astype(config.dtype), init(key))
        trainer = low_rank_trainer(config, model, cast, loss)
        return lowgrad_learner(trainer, cast, balanced)
    narrow = high_half if config.dtype == "bfloat16" else lambda params: params
    if config.layerwise:
        layers, rest = layer_optimizers(config, model)
        trainer = layerwise(stages(model), layers, rest, clip=config.clip)
        return layerwise_learner(trainer, init, narrow=narrow, mend=balanced)
    tx = decayed(config, OPTIMIZERS[config.optimizer](config, model))
    tx = rounded(config, clipped(config, tx))
    return optax_learner(loss, init, tx, narrow=narrow, accumulate=config.accumulate, mend=balanced)


def layer_optimizers(
    config: TrainConfig, model: LanguageModel
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """What updates one layer at a time, {"layers": one}, and what updates all else: Adam."""
    layers = decayed(config, OPTIMIZERS[config.optimizer](config, model))
    return rounded(config, layers), rounded(config, quantized(config, adam(config)))


def rounded(config: TrainConfig, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` for weights of the configured type: bfloat16 ones lose no update."""
    if config.dtype == "float32":
        return tx
    split = config.rounding == "split"
    return with_split_master(tx) if split else with_stochastic_rounding(tx, config.seed)


def low_rank_trainer(
    config: TrainConfig, model: LanguageModel, init: Callable[[Any], Any], loss: Loss
) -> Trainer:
    """`sr.lowgrad` on the matrices of the blocks."""
    return lowgrad(
        loss,
        jax.eval_shape(init, jax.random.key(0)),
        clipped(config, quantized(config, adam(config))),
        plan=plan_of(model),
        rank=rank_of(config, model),
        select=is_matrix,
        period=config.steps_between,
        turns=1 if config.refresh == "random" else 4,
        refresh=config.refresh,
        scale=config.scale,
        accumulate=config.accumulate,
        has_aux=True,
        seed=config.seed,
    )


def clipped(config: TrainConfig, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return tx if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), tx)


def quantized(
    config: TrainConfig, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    return tx if config.state_bits == 32 else quantize_state(tx, bits=config.state_bits)


def balanced(params: Any, figures: dict[str, Any]) -> Any:
    """Params with the routers' selection biases moved towards an even load, where there are any."""
    layers = params["layers"]
    bias = layers.get("mlp", {}).get("e_score_correction_bias")
    if bias is None:
        return params
    moved = jax.vmap(balance)(bias, figures["load"])
    return params | {"layers": layers | {"mlp": layers["mlp"] | {"e_score_correction_bias": moved}}}


def learning_rate(config: TrainConfig) -> Schedule:
    """Linear warm-up to the peak, then down to a tenth over `schedule_steps`; or constant."""
    peak = LR[config.optimizer] if config.lr is None else config.lr
    steps = config.schedule_steps
    rise = round(config.warmup * (steps or UNLIMITED_WARMUP))
    warm = optax.linear_schedule(peak / (rise + 1), peak, rise)
    if steps is None or config.schedule == "constant":
        fall = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, max(1, steps - rise), alpha=0.1)
    else:
        fall = optax.linear_schedule(peak, peak / 10, max(1, steps - rise))
    return optax.join_schedules([warm, fall], [rise])


def is_matrix(path: str) -> bool:
    """Whether a parameter is a matrix of a block."""
    return PROJECTED.search(path) is not None


def matrices(params: Any) -> Any:
    """A tree of booleans: which leaves are matrices of a block."""
    spelt = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(lambda path, _: is_matrix(spelt(path)), params)


def plan_of(model: LanguageModel) -> WeightRoles:
    """Which axes of each parameter are inputs, outputs and stacks; nothing is computed."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    return discover(model.loss, params, jax.ShapeDtypeStruct((1, 9), jnp.int32))


def rank_of(config: TrainConfig, model: LanguageModel) -> int:
    """As asked, or a quarter of the hidden size."""
    return config.rank or max(1, model.config.hidden // 4)


def decayed(config: TrainConfig, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx`, and lr weight_decay W off every matrix of a block: AdamW's decay for any optimizer."""
    if not config.weight_decay:
        return tx
    rate = learning_rate(config)
    share = lambda step: -config.weight_decay * rate(step)
    return optax.chain(tx, optax.add_decayed_weights(share, mask=matrices))


def adam(config: TrainConfig) -> optax.GradientTransformation:
    return optax.adam(learning_rate(config), b1=config.b1, b2=config.b2)


def full(config: TrainConfig, model: LanguageModel) -> optax.GradientTransformation:
    return quantized(config, adam(config))


def muon(config: TrainConfig, model: LanguageModel) -> optax.GradientTransformation:
    """Muon for the matrices of a block, batched over layers and experts; Adam for the rest."""
    rate = learning_rate(config)
    out_in = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
    tx = optax.contrib.muon(
        rate,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_learning_rate=lambda step: MUON_ADAM_SHARE * rate(step),
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda matrix: out_in if matrix else None, matrices(params)
        ),
    )
    return quantized(config, tx)


def on_galore(config: TrainConfig, model: LanguageModel) -> optax.GradientTransformation:
    inner = quantized(config, adam(config))
    return galore(inner, rank_of(config, model), **projection(config, model))


def on_apollo(config: TrainConfig, model: LanguageModel) -> optax.GradientTransformation:
    options = projection(config, model) | directed(config)
    return apollo(learning_rate(config), rank_of(config, model), **options)


def on_apollo_mini(config: TrainConfig, model: LanguageModel) -> optax.GradientTransformation:
    options = projection(config, model) | directed(config)
    return apollo_mini(learning_rate(config), config.rank or 1, **options)


def on_fira(config: TrainConfig, model: LanguageModel) -> optax.GradientTransformation:
    options = projection(config, model) | directed(config)
    return fira(learning_rate(config), rank_of(config, model), **options)


def projection(config: TrainConfig, model: LanguageModel) -> dict[str, Any]:
    """The options that all projecting transformations share."""
    options = {
        "update_gap": config.steps_between,
        "select": is_matrix,
        "plan": plan_of(model),
        "seed": config.seed,
    }
    return options if config.scale is None else options | {"scale": config.scale}


def directed(config: TrainConfig) -> dict[str, Any]:
    """Adam's part of APOLLO and Fira."""
    direction = quantized(config, adam_direction(config.b1, config.b2))
    return {"b1": config.b1, "b2": config.b2, "direction": direction}


OPTIMIZERS: dict[str, Callable[[TrainConfig, LanguageModel], optax.GradientTransformation]] = {
    "adamw": full,
    "galore": on_galore,
    "apollo": on_apollo,
    "apollo-mini": on_apollo_mini,
    "fira": on_fira,
    "muon": muon,
}
